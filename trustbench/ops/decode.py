"""decode: the sparse decoder, a weighted sum of decoder rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustbench.ops import dispatch
from trustbench.ops.code_grad import code_grad
from trustbench.ops.codes import entry_rows
from trustbench.ops.registration import (
    DTYPE_CODE,
    address,
    check_code,
    check_entries,
    check_tensor,
    register,
)
from trustbench.ops.spec import FLOATS, INT32, INT64, OpSpec, same, same_or_fp32
from trustbench.ops.weight_grad import weight_grad


def decode(
    values: Tensor, indices: Tensor, W_dec: Tensor, row_offsets: Tensor | None = None
) -> Tensor:
    """x_hat[n] = Σ_p values[p] W_dec[indices[p]] over the entries p of token n (no b_dec).

    Differentiable (once) in values and W_dec. Sums are fp32, in the order of the code; an entry of
    value 0 contributes nothing, whatever its row holds.

    Parameters
    ----------
    values : Tensor [N, k] (TopK code) or [nnz] (CSR code), dtype of W_dec or fp32
    indices : Tensor, shape of values, int32, each in [0, F)
    W_dec : Tensor [F, d], fp32, bf16 or fp64 (fp64 runs the reference)
    row_offsets : Tensor [N + 1], int64, for a CSR code

    Returns
    -------
    Tensor [N, d], dtype of W_dec

    Raises
    ------
    InputError
        For a wrong shape or dtype, an index outside [0, F), or offsets that do not fit the code.

    Examples
    --------
    >>> values, indices = torch.tensor([[5.0, 4.0]]), torch.tensor([[1, 2]], dtype=torch.int32)
    >>> tb.ops.decode(values, indices, torch.eye(3)).tolist()
    [[0.0, 5.0, 4.0]]
    """
    check_tensor("W_dec", W_dec, (None, None), *FLOATS)
    check_code(indices, row_offsets, device=W_dec.device)
    kinds = value_dtypes(W_dec)
    check_tensor("values", values, tuple(indices.shape), *kinds, device=W_dec.device)
    return _decode(values, indices, W_dec, row_offsets)


def value_dtypes(W_dec: Tensor) -> tuple[torch.dtype, ...]:
    """What a code's values may be beside these weights: their dtype, or fp32 beside bf16."""
    wide = (torch.float32,) if W_dec.dtype == torch.bfloat16 else ()
    return (W_dec.dtype, *wide)


def reference(values: Tensor, indices: Tensor, W_dec: Tensor, row_offsets: Tensor | None) -> Tensor:
    wide = torch.float64 if W_dec.dtype == torch.float64 else torch.float32
    rows = entry_rows(indices, row_offsets)
    tokens = len(indices) if row_offsets is None else len(row_offsets) - 1
    v = values.to(wide).flatten()[:, None]
    terms = (v * W_dec.to(wide)[indices.flatten().long()]).masked_fill_(v == 0, 0)
    out = terms.new_zeros(tokens, W_dec.shape[1]).index_add_(0, rows, terms)
    return out.to(W_dec.dtype)


def _run(values: Tensor, indices: Tensor, W_dec: Tensor, row_offsets: Tensor | None) -> Tensor:
    indices, row_offsets = check_entries(indices, row_offsets, W_dec.shape[0])
    chosen = dispatch.implementation("decode", W_dec)
    if chosen == "reference":
        return reference(values, indices, W_dec, row_offsets)
    values, W = values.float().contiguous(), W_dec.contiguous()
    if chosen == "triton":
        return dispatch.triton("decode").decode(values, indices, W, row_offsets)
    N = len(indices) if row_offsets is None else len(row_offsets) - 1
    k = indices.shape[1] if row_offsets is None else 0
    F, d = W.shape
    out = torch.empty(N, d, dtype=torch.float32)
    dispatch.native().decode(
        values.data_ptr(), indices.data_ptr(), address(row_offsets), W.data_ptr(), out.data_ptr(),
        N, d, F, k, DTYPE_CODE[W.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return out.to(W_dec.dtype)


def _fake(values: Tensor, indices: Tensor, W_dec: Tensor, row_offsets: Tensor | None) -> Tensor:
    N = indices.shape[0] if row_offsets is None else row_offsets.shape[0] - 1
    return W_dec.new_empty(N, W_dec.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, indices, W_dec, row_offsets = inputs
    ctx.save_for_backward(values, indices, W_dec, row_offsets)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    values, indices, W_dec, row_offsets = ctx.saved_tensors
    dvalues = dW = None
    if ctx.needs_input_grad[0]:
        dvalues = code_grad(grad.contiguous(), indices, W_dec, row_offsets).to(values.dtype)
    if ctx.needs_input_grad[2]:
        coefs = values.to(grad.dtype)
        dW, _ = weight_grad(coefs, indices, grad.contiguous(), W_dec.shape[0], row_offsets)
    return dvalues, None, dW, None


_decode = register(
    "decode(Tensor values, Tensor indices, Tensor W_dec, Tensor? row_offsets) -> Tensor",
    _run,
    _fake,
    _setup_context,
    _backward,
)

SPEC = OpSpec(
    "decode",
    "x_hat = Σ values W_dec[indices]",
    {
        "values": ("N k or nnz", same_or_fp32("W_dec")),
        "indices": ("N k or nnz", INT32),
        "W_dec": ("F d", FLOATS),
        "row_offsets": ("N+1", INT64),
    },
    {"x_hat": ("N d", same("W_dec"))},
    "none: a token's sum runs in the order of its code",
    lambda s: 2.0 * s.N * s.k * s.d,
    lambda s: 4.0 * (min(s.N * s.k, s.F) * s.d + s.N * s.d) + 8.0 * s.N * s.k,
)
