"""reconstruct: decode, residual and squared error of every token, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustbench.ops import dispatch
from trustbench.ops.code_grad import code_grad
from trustbench.ops.code_grad import reference as code_grad_reference
from trustbench.ops.codes import entry_rows
from trustbench.ops.decode import decode, value_dtypes
from trustbench.ops.decode import reference as decode_reference
from trustbench.ops.registration import check_code, check_entries, check_tensor, register
from trustbench.ops.spec import FLOATS, INT32, INT64, OpSpec, same, same_or_fp32, wide
from trustbench.ops.weight_grad import weight_grad


def reconstruct(
    values: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    x: Tensor,
    row_offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """error[n] = x_hat[n] - x[n] and squared[n] = ‖error[n]‖², with x_hat = Σ_p values[p]
    W_dec[indices[p]] + b_dec over the entries p of token n.

    Differentiable (once) in values, W_dec, b_dec and x. Where values need a gradient, that of
    `squared` is computed here and now, from decoder rows that are still at hand. Sums are fp32, in
    the order of the code.

    Parameters
    ----------
    values : Tensor [N, k] (TopK code) or [nnz] (CSR code), dtype of W_dec or fp32
    indices : Tensor, shape of values, int32, each in [0, F)
    W_dec : Tensor [F, d], fp32, bf16 or fp64 (fp64 runs the reference)
    b_dec : Tensor [d], dtype of W_dec or fp32
    x : Tensor [N, d], dtype of W_dec
    row_offsets : Tensor [N + 1], int64, for a CSR code

    Returns
    -------
    (Tensor [N, d], dtype of W_dec; Tensor [N], fp32, or fp64 for fp64)

    Raises
    ------
    InputError
        For a wrong shape or dtype, an index outside [0, F), or offsets that do not fit the code.
    """
    _check(values, indices, W_dec, b_dec, x, row_offsets)
    gradient = torch.is_grad_enabled() and values.requires_grad
    error, squared, _ = _reconstruct(values, indices, W_dec, b_dec, x, row_offsets, gradient)
    return error, squared


def reconstruct_products(
    values: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    x: Tensor,
    row_offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(error, squared, products): `reconstruct`, and <error[n], W_dec[indices[p]]> of every entry p.

    Half the gradient of Σ_n squared[n] in the code's values, of entries with value 0 too (JumpReLU's
    threshold wants it of those below it); fp32 (fp64 for fp64), of the shape of indices.
    """
    _check(values, indices, W_dec, b_dec, x, row_offsets)
    return _reconstruct(values, indices, W_dec, b_dec, x, row_offsets, True)


def _check(
    values: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    x: Tensor,
    row_offsets: Tensor | None,
) -> None:
    check_tensor("W_dec", W_dec, (None, None), *FLOATS)
    device, kinds = W_dec.device, value_dtypes(W_dec)
    check_tensor("b_dec", b_dec, (W_dec.shape[1],), *kinds, device=device)
    check_tensor("x", x, (None, W_dec.shape[1]), W_dec.dtype, device=device)
    check_code(indices, row_offsets, tokens=x.shape[0], device=device)
    check_tensor("values", values, tuple(indices.shape), *kinds, device=device)


def reference(
    values: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    x: Tensor,
    row_offsets: Tensor | None,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(error, squared, <error, W_dec row> of every entry if `gradient`, else empty)."""
    wide = torch.float64 if W_dec.dtype == torch.float64 else torch.float32
    W = W_dec.to(wide)
    error = decode_reference(values.to(wide), indices, W, row_offsets) + b_dec.to(wide) - x.to(wide)
    products = x.new_empty(0, dtype=wide)
    if gradient:
        products = code_grad_reference(error, indices, W, row_offsets)
    return error.to(W_dec.dtype), error.square().sum(1), products


def _run(
    values: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    x: Tensor,
    row_offsets: Tensor | None,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = dispatch.implementation("reconstruct", W_dec)
    if chosen != "cpp":  # there decode checks them
        indices, row_offsets = check_entries(indices, row_offsets, W_dec.shape[0])
    if chosen == "reference":
        return reference(values, indices, W_dec, b_dec, x, row_offsets, gradient)
    if chosen == "triton":
        return dispatch.triton("reconstruct").reconstruct(
            values.float().contiguous(), indices, W_dec.contiguous(), b_dec.float().contiguous(),
            x.contiguous(), row_offsets, gradient=gradient, error_dtype=W_dec.dtype,
        )  # fmt: skip
    # On the CPU the rows stay in the caches between the two kernels.
    error = decode(values, indices, W_dec, row_offsets).float() + b_dec.float() - x.float()
    products = x.new_empty(0, dtype=torch.float32)
    if gradient:
        narrow = error.to(W_dec.dtype)
        products = code_grad(narrow, indices, W_dec, row_offsets).float()
    return error.to(W_dec.dtype), error.square().sum(1), products


def _fake(
    values: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    x: Tensor,
    row_offsets: Tensor | None,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.float64 if W_dec.dtype == torch.float64 else torch.float32
    products = x.new_empty(indices.shape if gradient else (0,), dtype=wide)
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=wide), products


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    values, indices, W_dec, b_dec, _, row_offsets, _ = inputs
    error, _, products = output
    ctx.b_dtype = b_dec.dtype
    ctx.save_for_backward(values, indices, W_dec, row_offsets, error, products)
    ctx.mark_non_differentiable(products)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_error: Tensor | None, grad_squared: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    values, indices, W_dec, offsets, error, products = ctx.saved_tensors
    if grad_error is None and grad_squared is None:
        return (None,) * 7
    parts = []
    if grad_error is not None:
        parts.append(grad_error)
    if grad_squared is not None:
        parts.append((2 * grad_squared)[:, None].to(error.dtype) * error)
    grad = sum(parts[1:], parts[0]).contiguous()
    dvalues = dW = None
    if ctx.needs_input_grad[0]:
        # A second derivative must meet code_grad, which refuses it; the products know of none.
        if grad_error is None and grad_squared is not None and not torch.is_grad_enabled():
            twice = 2 * grad_squared[entry_rows(indices, offsets)].view(indices.shape)
            dvalues = (twice * products).to(values.dtype)
        else:
            dvalues = code_grad(grad, indices, W_dec, offsets).to(values.dtype)
    if ctx.needs_input_grad[2]:
        coefs = values.to(grad.dtype)
        dW, _ = weight_grad(coefs, indices, grad, W_dec.shape[0], offsets)
    db = grad.sum(0).to(ctx.b_dtype) if ctx.needs_input_grad[3] else None
    return dvalues, None, dW, db, -grad if ctx.needs_input_grad[4] else None, None, None


_reconstruct = register(
    "reconstruct(Tensor values, Tensor indices, Tensor W_dec, Tensor b_dec, Tensor x,"
    " Tensor? row_offsets, bool gradient) -> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
    _setup_context,
    _backward,
)

SPEC = OpSpec(
    "reconstruct",
    "x_hat - x and its squared norm, x_hat = Σ values W_dec[indices] + b_dec",
    {
        "values": ("N k or nnz", same_or_fp32("W_dec")),
        "indices": ("N k or nnz", INT32),
        "W_dec": ("F d", FLOATS),
        "b_dec": ("d", same_or_fp32("W_dec")),
        "x": ("N d", same("W_dec")),
        "row_offsets": ("N+1", INT64),
    },
    {"error": ("N d", same("W_dec")), "squared": ("N", wide("W_dec"))},
    "none: a token's sum runs in the order of its code",
    lambda s: 2.0 * s.N * s.k * s.d + 4.0 * s.N * s.d,
    lambda s: 4.0 * (min(s.N * s.k, s.F) * s.d + 2 * s.N * s.d) + 8.0 * s.N * s.k,
)
