"""encode_relu: every pre-activation above zero, or above a threshold a feature, as a CSR code.

`encode_relu_padded` puts it into memory of a size given beforehand.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustbench.ops import dispatch
from trustbench.ops.codes import CSRCode, PaddedCode, padded
from trustbench.ops.decode import decode
from trustbench.ops.registration import (
    DTYPE_CODE,
    address,
    check_encoder,
    check_integer,
    check_tensor,
    encoder_arguments,
    pre_activations,
    register,
    tensor_core_operands,
)
from trustbench.ops.spec import FLOATS, INT32, INT64, OpSpec, same
from trustbench.ops.weight_grad import weight_grad


def encode_relu(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    threshold: Tensor | None = None,
    *,
    matmul_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> CSRCode:
    """The entries of pre = x W_enc^T + b_enc above a threshold: ReLU for None, JumpReLU otherwise.

    Differentiable in x, W_enc and b_enc (the kept entries pass their gradient straight on); the
    threshold gets no gradient here (JumpReLU's straight-through estimate is in trustbench.sae).

    Parameters
    ----------
    x : Tensor [N, d], fp32, bf16 or fp64
    W_enc : Tensor [F, d], dtype of x
    b_enc : Tensor [F]
    threshold : Tensor [F] or None
        Keep pre > threshold[i]; None keeps pre > 0. A NaN is kept, so that it is seen.
    matmul_dtype, out_dtype
        As in `encode_topk`.

    Returns
    -------
    CSRCode
        row_offsets [N + 1] int64, indices [nnz] int32 (ascending within a token), values [nnz].

    Raises
    ------
    InputError
        For a wrong shape or dtype.
    """
    check_encoder(x, W_enc, b_enc, matmul_dtype, out_dtype)
    _check_threshold(threshold, W_enc)
    return csr_code(*_encode_relu(x, W_enc, b_enc, threshold, matmul_dtype, out_dtype))


def encode_relu_padded(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    room: int,
    threshold: Tensor | None = None,
    *,
    matmul_dtype: torch.dtype | None = None,
) -> PaddedCode:
    """`encode_relu` in `room` places; a GPU is not waited for. Has no gradient.

    Parameters are those of `encode_relu`. `fits` says whether the whole code is there.

    Raises
    ------
    InputError
        For a wrong shape or dtype, or a negative room.
    """
    check_encoder(x, W_enc, b_enc, matmul_dtype)
    _check_threshold(threshold, W_enc)
    check_integer("room", room, least=0)
    return padded_code(*_encode_relu_padded(x, W_enc, b_enc, room, threshold, matmul_dtype))


def _check_threshold(threshold: Tensor | None, W_enc: Tensor) -> None:
    if threshold is not None:
        check_tensor("threshold", threshold, (W_enc.shape[0],), *FLOATS, device=W_enc.device)


def reference(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    threshold: Tensor | None,
    matmul_dtype: torch.dtype | None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    pre = pre_activations(x, W_enc, b_enc, matmul_dtype)
    kept = ~(pre <= (0.0 if threshold is None else threshold.to(pre.dtype)))
    offsets = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
    offsets[1:] = kept.sum(1).cumsum(0)
    values = pre[kept].to(out_dtype or x.dtype)
    return values, kept.nonzero()[:, 1].to(torch.int32), offsets


def _run(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    threshold: Tensor | None,
    matmul_dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = dispatch.implementation("encode_relu", x)
    if chosen == "reference":
        return reference(x, W_enc, b_enc, threshold, matmul_dtype, out_dtype)
    x, W, b, rounded = encoder_arguments(x, W_enc, b_enc, matmul_dtype)
    floor = None if threshold is None else threshold.float().contiguous()
    if chosen == "triton":
        operands = tensor_core_operands(x, W, rounded)
        values, indices, offsets = dispatch.triton("encode_relu").encode_relu(*operands, b, floor)
        return values.to(out_dtype or x.dtype), indices, offsets
    (N, d), F = x.shape, W.shape[0]
    arrays = dispatch.native().encode_relu(
        x.data_ptr(), W.data_ptr(), b.data_ptr(), address(floor),
        N, d, F, DTYPE_CODE[x.dtype], rounded, torch.get_num_threads(),
    )  # fmt: skip
    offsets, indices, values = (torch.from_numpy(array) for array in arrays)
    return values.to(out_dtype or x.dtype), indices, offsets


def _run_padded(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    room: int,
    threshold: Tensor | None,
    matmul_dtype: torch.dtype | None,
) -> tuple[Tensor, ...]:
    if dispatch.implementation("encode_relu", x) == "triton":
        x, W, b, rounded = encoder_arguments(x, W_enc, b_enc, matmul_dtype)
        floor = None if threshold is None else threshold.float().contiguous()
        kernels = dispatch.triton("encode_relu")
        return kernels.padded(*tensor_core_operands(x, W, rounded), b, floor, room)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return padded_outputs(_run(x, W_enc, b_enc, threshold, matmul_dtype, wide), room)


def padded_outputs(csr: tuple[Tensor, Tensor, Tensor], room: int) -> tuple[Tensor, ...]:
    """What a padded encoder returns, from what an exact one does: values first, as in `csr_code`."""
    code = padded(csr_code(*csr), room)
    return code.values, code.indices, code.row_offsets, code.rows, code.fits


def padded_code(
    values: Tensor, indices: Tensor, row_offsets: Tensor, rows: Tensor, fits: Tensor
) -> PaddedCode:
    """The reverse."""
    return PaddedCode(row_offsets, indices, values, rows, fits)


def csr_code(values: Tensor, indices: Tensor, row_offsets: Tensor) -> CSRCode:
    """The code from what a registered op returns: values first, because opcheck starts its sum of
    all outputs with the first one, and a sum that starts with integers takes no values."""
    return CSRCode(row_offsets, indices, values)


def fake_csr(x: Tensor, out_dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes of a CSR code whose number of entries only the data tells."""
    if x.device.type == "meta":  # not a FakeTensor, which names the device it stands for
        raise NotImplementedError("x is on meta: how many entries a code has only data tells")
    nnz = torch.library.get_ctx().new_dynamic_size()
    return (
        x.new_empty(nnz, dtype=out_dtype or x.dtype),
        x.new_empty(nnz, dtype=torch.int32),
        x.new_empty(x.shape[0] + 1, dtype=torch.int64),
    )


def fake_padded(x: Tensor, room: int) -> tuple[Tensor, ...]:
    """Shapes of a padded code."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    indices = x.new_empty(room, dtype=torch.int32)
    offsets = x.new_empty(x.shape[0] + 1, dtype=torch.int64)
    fits = x.new_empty(1, dtype=torch.bool)
    return x.new_empty(room, dtype=wide), indices, offsets, torch.empty_like(indices), fits


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return fake_csr(x, rest[-1])


def _fake_padded(x: Tensor, W_enc: Tensor, b_enc: Tensor, room: int, *_: Any) -> tuple[Tensor, ...]:
    return fake_padded(x, room)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """For encoders with a CSR code: what their backward needs."""
    x, W_enc, b_enc, *rest = inputs
    _, indices, offsets = output
    ctx.save_for_backward(x, W_enc, offsets, indices)
    ctx.b_dtype = b_enc.dtype
    ctx.rest = len(rest)
    ctx.mark_non_differentiable(offsets, indices)


def backward(ctx: Any, dpre: Tensor, *_: Any) -> tuple[Any, ...]:
    """For encoders with a CSR code: the gradient of the kept pre-activations."""
    x, W_enc, offsets, indices = ctx.saved_tensors
    dpre = dpre.to(x.dtype)
    dx = decode(dpre, indices, W_enc, offsets) if ctx.needs_input_grad[0] else None
    dW, db = weight_grad(dpre, indices, x, W_enc.shape[0], offsets)
    return dx, dW, db.to(ctx.b_dtype), *(None,) * ctx.rest


_encode_relu = register(
    "encode_relu(Tensor x, Tensor W_enc, Tensor b_enc, Tensor? threshold,"
    " ScalarType? matmul_dtype, ScalarType? out_dtype) -> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
    setup_context,
    backward,
)

_encode_relu_padded = register(
    "encode_relu_padded(Tensor x, Tensor W_enc, Tensor b_enc, int room, Tensor? threshold,"
    " ScalarType? matmul_dtype) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_padded,
    _fake_padded,
)


SPEC = OpSpec(
    "encode_relu",
    "x W_encᵀ + b_enc where above the threshold",
    {
        "x": ("N d", FLOATS),
        "W_enc": ("F d", same("x")),
        "b_enc": ("F", FLOATS),
        "threshold": ("F", FLOATS),
    },
    {"row_offsets": ("N+1", INT64), "indices": ("nnz", INT32), "values": ("nnz", same("x"))},
    "none: what equals its threshold is dropped; NaN is kept",
    lambda s: 2.0 * s.N * s.d * s.F,
    lambda s: 4.0 * (s.N * s.d + s.F * s.d + s.F) + 8.0 * s.N * s.k,
)
