"""encode_topk: the k largest pre-activations of every token, through a ReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustbench.ops import dispatch
from trustbench.ops.codes import TopKCode
from trustbench.ops.decode import decode
from trustbench.ops.registration import (
    DTYPE_CODE,
    check_encoder,
    check_k,
    encoder_arguments,
    pre_activations,
    register,
    tensor_core_operands,
)
from trustbench.ops.spec import FLOATS, INT32, OpSpec, Shape, same
from trustbench.ops.weight_grad import weight_grad


def encode_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    *,
    matmul_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> TopKCode:
    """The k largest entries of pre = x W_enc^T + b_enc, then ReLU (Gao et al. 2024, eq. 4).

    Exact with respect to the pre-activations as computed; ties go to the lower index; a NaN counts
    as larger than every number, so that it is seen. Differentiable in x, W_enc and b_enc: an entry
    passes its gradient on where its value is > 0.

    Parameters
    ----------
    x : Tensor [N, d], fp32, bf16 or fp64
        Activations (with b_dec already subtracted). fp64 runs the reference.
    W_enc : Tensor [F, d], dtype of x
    b_enc : Tensor [F]
    k : int in [1, F]
    matmul_dtype
        torch.bfloat16 rounds the operands of the matmul to bf16; sums stay fp32. None: dtype of x.
    out_dtype
        Of the values, which are sums in fp32 (fp64 for fp64). None: dtype of x.

    Returns
    -------
    TopKCode
        values [N, k], largest first; indices [N, k] int32.

    Raises
    ------
    InputError
        For a wrong shape or dtype, or k outside [1, F].

    Examples
    --------
    >>> code = tb.ops.encode_topk(torch.tensor([[3.0, 5.0, 4.0]]), torch.eye(3), torch.zeros(3), k=2)
    >>> code.values.tolist(), code.indices.tolist()
    ([[5.0, 4.0]], [[1, 2]])
    """
    check_encoder(x, W_enc, b_enc, matmul_dtype, out_dtype)
    check_k(k, W_enc.shape[0])
    return TopKCode(*_encode_topk(x, W_enc, b_enc, k, matmul_dtype, out_dtype))


def reference(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    matmul_dtype: torch.dtype | None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    values = x.new_empty(len(x), k, dtype=out_dtype or x.dtype)
    indices = x.new_empty(len(x), k, dtype=torch.int32)
    # Some tokens at a time: sorting all N F pre-activations together takes 16 bytes for each.
    tokens = max(1, 2**22 // W_enc.shape[0])
    for first in range(0, len(x), tokens):
        part = slice(first, first + tokens)
        pre = pre_activations(x[part], W_enc, b_enc, matmul_dtype)
        # A stable sort keeps the lower index first among equals, which torch.topk does not promise.
        top, at = pre.sort(dim=1, descending=True, stable=True)
        values[part], indices[part] = top[:, :k].relu(), at[:, :k]
    return values, indices


def _run(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    matmul_dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    chosen = dispatch.implementation("encode_topk", x)
    if chosen == "reference":
        return reference(x, W_enc, b_enc, k, matmul_dtype, out_dtype)
    x, W, b, rounded = encoder_arguments(x, W_enc, b_enc, matmul_dtype)
    if chosen == "triton":
        operands = tensor_core_operands(x, W, rounded)
        values, indices = dispatch.triton("encode_topk").encode_topk(*operands, b, k)
        return values.to(out_dtype or x.dtype), indices
    (N, d), F = x.shape, W.shape[0]
    values = torch.empty(N, k, dtype=torch.float32)
    indices = torch.empty(N, k, dtype=torch.int32)
    dispatch.native().encode_topk(
        x.data_ptr(), W.data_ptr(), b.data_ptr(), values.data_ptr(), indices.data_ptr(),
        N, d, F, k, DTYPE_CODE[x.dtype], rounded, torch.get_num_threads(),
    )  # fmt: skip
    return values.to(out_dtype or x.dtype), indices


def _fake(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    matmul_dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], k)
    return x.new_empty(shape, dtype=out_dtype or x.dtype), x.new_empty(shape, dtype=torch.int32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, W_enc, b_enc, *_ = inputs
    values, indices = output
    ctx.save_for_backward(x, W_enc, values, indices)
    ctx.b_dtype = b_enc.dtype
    ctx.mark_non_differentiable(indices)


def _backward(ctx: Any, grad_values: Tensor, _: Tensor) -> tuple[Any, ...]:
    x, W_enc, values, indices = ctx.saved_tensors
    dpre = grad_values.masked_fill(~(values > 0), 0).to(x.dtype)
    dx = decode(dpre, indices, W_enc) if ctx.needs_input_grad[0] else None
    dW, db = weight_grad(dpre, indices, x, W_enc.shape[0])
    return dx, dW, db.to(ctx.b_dtype), None, None, None


_encode_topk = register(
    "encode_topk(Tensor x, Tensor W_enc, Tensor b_enc, int k, ScalarType? matmul_dtype,"
    " ScalarType? out_dtype) -> (Tensor, Tensor)",
    _run,
    _fake,
    _setup_context,
    _backward,
)


def _flops(s: Shape) -> float:
    return 2.0 * s.N * s.d * s.F


def _bytes(s: Shape) -> float:
    return 4.0 * (s.N * s.d + s.F * s.d + s.F) + 8.0 * s.N * s.k


SPEC = OpSpec(
    "encode_topk",
    "relu(topk(x W_encᵀ + b_enc, k))",
    {"x": ("N d", FLOATS), "W_enc": ("F d", same("x")), "b_enc": ("F", FLOATS)},
    {"values": ("N k", same("x")), "indices": ("N k", INT32)},
    "equal pre-activations: the lower feature first; NaN above every number",
    _flops,
    _bytes,
)
