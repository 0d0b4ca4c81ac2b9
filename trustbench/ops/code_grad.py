"""code_grad: the gradient of a code's values, one dot product an entry."""

from __future__ import annotations

import torch
from torch import Tensor

from trustbench.ops import dispatch
from trustbench.ops.codes import entry_rows
from trustbench.ops.registration import (
    DTYPE_CODE,
    address,
    check_code,
    check_entries,
    check_tensor,
    no_second_order,
    register,
)
from trustbench.ops.spec import FLOATS, INT32, INT64, OpSpec, same


def code_grad(
    grad: Tensor, indices: Tensor, W_dec: Tensor, row_offsets: Tensor | None = None
) -> Tensor:
    """dvalues[p] = <grad[n], W_dec[indices[p]]> for every entry p of token n.

    Parameters
    ----------
    grad : Tensor [N, d], dtype of W_dec
        Gradient of the loss in x_hat.
    indices : Tensor [N, k] (TopK code) or [nnz] (CSR code), int32
    W_dec : Tensor [F, d], fp32, bf16 or fp64 (fp64 runs the reference)
    row_offsets : Tensor [N + 1], int64, for a CSR code

    Returns
    -------
    Tensor, shape of indices, dtype of W_dec

    Raises
    ------
    InputError
        For a wrong shape or dtype, an index outside [0, F), or offsets that do not fit the code.
    """
    check_tensor("W_dec", W_dec, (None, None), *FLOATS)
    check_tensor("grad", grad, (None, W_dec.shape[1]), W_dec.dtype, device=W_dec.device)
    check_code(indices, row_offsets, tokens=grad.shape[0], device=W_dec.device)
    return _code_grad(grad, indices, W_dec, row_offsets)


def reference(grad: Tensor, indices: Tensor, W_dec: Tensor, row_offsets: Tensor | None) -> Tensor:
    wide = torch.float64 if W_dec.dtype == torch.float64 else torch.float32
    rows = entry_rows(indices, row_offsets)
    products = grad.to(wide)[rows] * W_dec.to(wide)[indices.flatten().long()]
    return products.sum(1).view(indices.shape).to(W_dec.dtype)


def _run(grad: Tensor, indices: Tensor, W_dec: Tensor, row_offsets: Tensor | None) -> Tensor:
    indices, row_offsets = check_entries(indices, row_offsets, W_dec.shape[0])
    chosen = dispatch.implementation("code_grad", W_dec)
    if chosen == "reference":
        return reference(grad, indices, W_dec, row_offsets)
    if chosen == "triton":
        kernel = dispatch.triton("code_grad").code_grad
        return kernel(grad.contiguous(), indices, W_dec.contiguous(), row_offsets).to(W_dec.dtype)
    grad, W = grad.float().contiguous(), W_dec.contiguous()
    (N, d), F = grad.shape, W.shape[0]
    k = indices.shape[1] if row_offsets is None else 0
    out = torch.empty(indices.shape, dtype=torch.float32)
    dispatch.native().code_grad(
        grad.data_ptr(), indices.data_ptr(), address(row_offsets), W.data_ptr(), out.data_ptr(),
        N, d, F, k, DTYPE_CODE[W.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return out.to(W_dec.dtype)


def _fake(grad: Tensor, indices: Tensor, W_dec: Tensor, row_offsets: Tensor | None) -> Tensor:
    return W_dec.new_empty(indices.shape)


_code_grad = register(
    "code_grad(Tensor grad, Tensor indices, Tensor W_dec, Tensor? row_offsets) -> Tensor",
    _run,
    _fake,
    backward=no_second_order("code_grad"),
)

SPEC = OpSpec(
    "code_grad",
    "dvalues = <grad, W_dec[indices]>",
    {
        "grad": ("N d", same("W_dec")),
        "indices": ("N k or nnz", INT32),
        "W_dec": ("F d", FLOATS),
        "row_offsets": ("N+1", INT64),
    },
    {"dvalues": ("N k or nnz", same("W_dec"))},
    "none: one dot product an entry",
    lambda s: 2.0 * s.N * s.k * s.d,
    lambda s: 4.0 * (min(s.N * s.k, s.F) * s.d + s.N * s.d) + 8.0 * s.N * s.k,
)
