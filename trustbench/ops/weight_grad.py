"""weight_grad: the gradient of encoder or decoder weights from a sparse code."""

from __future__ import annotations

import torch
from torch import Tensor

from trustbench.ops import dispatch
from trustbench.ops.codes import entry_rows
from trustbench.ops.registration import (
    DTYPE_CODE,
    check_code,
    check_entries,
    check_integer,
    check_tensor,
    no_second_order,
    register,
)
from trustbench.ops.spec import FLOATS, INT32, INT64, OpSpec, same
from trustbench.ops.transpose_code import transpose_code


def weight_grad(
    coefs: Tensor,
    indices: Tensor,
    source: Tensor,
    d_sae: int,
    row_offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """dW[i] = Σ_p coefs[p] source[n] and db[i] = Σ_p coefs[p], over the entries p of feature i.

    dW_enc: coefs = gradient of the pre-activations, source = x. dW_dec: coefs = the code's values,
    source = gradient of x_hat. Sums are fp32, tokens ascending: deterministic, without atomics. An
    entry of coefficient 0 contributes nothing, whatever its row holds.

    Parameters
    ----------
    coefs : Tensor [N, k] (TopK code) or [nnz] (CSR code), dtype of source
    indices : Tensor, shape of coefs, int32
    source : Tensor [N, d], fp32, bf16 or fp64 (fp64 runs the reference)
    d_sae : int
    row_offsets : Tensor [N + 1], int64, for a CSR code

    Returns
    -------
    (Tensor [d_sae, d], Tensor [d_sae]), dtype of source

    Raises
    ------
    InputError
        For a wrong shape or dtype, an index outside [0, d_sae), or offsets that do not fit the code.
    """
    check_tensor("source", source, (None, None), *FLOATS)
    check_code(indices, row_offsets, tokens=source.shape[0], device=source.device)
    check_tensor("coefs", coefs, tuple(indices.shape), source.dtype, device=source.device)
    check_integer("d_sae", d_sae)
    return _weight_grad(coefs, indices, source, d_sae, row_offsets)


def reference(
    coefs: Tensor, indices: Tensor, source: Tensor, d_sae: int, row_offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if source.dtype == torch.float64 else torch.float32
    features = indices.flatten().long()
    c = coefs.to(wide).flatten()
    terms = c[:, None] * source.to(wide)[entry_rows(indices, row_offsets)]
    terms.masked_fill_(c[:, None] == 0, 0)
    dW = terms.new_zeros(d_sae, source.shape[1]).index_add_(0, features, terms)
    db = terms.new_zeros(d_sae).index_add_(0, features, c)
    return dW.to(source.dtype), db.to(source.dtype)


def _run(
    coefs: Tensor, indices: Tensor, source: Tensor, d_sae: int, row_offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    chosen = dispatch.implementation("weight_grad", source)
    if chosen == "reference":
        indices, row_offsets = check_entries(indices, row_offsets, d_sae)
        return reference(coefs, indices, source, d_sae, row_offsets)
    code = transpose_code(indices, d_sae, row_offsets)  # checks the entries
    coefs, source = coefs.float().contiguous(), source.contiguous()
    if chosen == "triton":
        return dispatch.triton("weight_grad").weight_grad(coefs, code, source)
    d = source.shape[1]
    dW = torch.empty(d_sae, d, dtype=torch.float32)
    db = torch.empty(d_sae, dtype=torch.float32)
    dispatch.native().weight_grad(
        coefs.data_ptr(), *(tensor.data_ptr() for tensor in code), source.data_ptr(),
        dW.data_ptr(), db.data_ptr(), d, d_sae, DTYPE_CODE[source.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return dW.to(source.dtype), db.to(source.dtype)


def _fake(
    coefs: Tensor, indices: Tensor, source: Tensor, d_sae: int, row_offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    return source.new_empty(d_sae, source.shape[1]), source.new_empty(d_sae)


_weight_grad = register(
    "weight_grad(Tensor coefs, Tensor indices, Tensor source, int d_sae,"
    " Tensor? row_offsets) -> (Tensor, Tensor)",
    _run,
    _fake,
    backward=no_second_order("weight_grad"),
)

SPEC = OpSpec(
    "weight_grad",
    "dW[i] = Σ coefs source, db[i] = Σ coefs",
    {
        "coefs": ("N k or nnz", same("source")),
        "indices": ("N k or nnz", INT32),
        "source": ("N d", FLOATS),
        "row_offsets": ("N+1", INT64),
    },
    {"dW": ("F d", same("source")), "db": ("F", same("source"))},
    "none: a feature's sum runs with tokens ascending",
    lambda s: 2.0 * s.N * s.k * s.d,
    lambda s: 4.0 * (s.F * s.d + s.N * s.d) + 12.0 * s.N * s.k,
)
