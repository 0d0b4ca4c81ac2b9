"""encode_batchtopk: the N k largest positive pre-activations of a whole batch, as a CSR code.

`encode_batchtopk_padded` puts it into N k places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustbench.ops import dispatch
from trustbench.ops.codes import CSRCode, PaddedCode
from trustbench.ops.encode_relu import (
    backward,
    csr_code,
    fake_csr,
    fake_padded,
    padded_code,
    padded_outputs,
    setup_context,
)
from trustbench.ops.registration import (
    DTYPE_CODE,
    check_encoder,
    check_k,
    encoder_arguments,
    pre_activations,
    register,
    tensor_core_operands,
)
from trustbench.ops.spec import FLOATS, INT32, INT64, OpSpec, same


def encode_batchtopk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    *,
    matmul_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> CSRCode:
    """BatchTopK (Bussmann et al. 2024, arXiv:2412.06410): k entries a token on average.

    Keeps the N k largest positive entries of pre = x W_enc^T + b_enc over all tokens and features
    (fewer where fewer are positive). Exact; ties go to the lower token, then the lower feature; a
    NaN counts as larger than every number. Differentiable in x, W_enc and b_enc.

    Parameters are those of `encode_topk`, and so are the errors.

    Returns
    -------
    CSRCode
        row_offsets [N + 1] int64, indices [nnz] int32 (ascending within a token), values [nnz].
    """
    check_encoder(x, W_enc, b_enc, matmul_dtype, out_dtype)
    check_k(k, W_enc.shape[0])
    return csr_code(*_encode_batchtopk(x, W_enc, b_enc, k, matmul_dtype, out_dtype))


def encode_batchtopk_padded(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, *, matmul_dtype: torch.dtype | None = None
) -> PaddedCode:
    """`encode_batchtopk` in N k places; a GPU is not waited for. Has no gradient.

    `fits` is False where a GPU's search, which starts from a sample of the tokens, was not sure of
    the code: the exact form has it.
    """
    check_encoder(x, W_enc, b_enc, matmul_dtype)
    check_k(k, W_enc.shape[0])
    return padded_code(*_encode_batchtopk_padded(x, W_enc, b_enc, k, matmul_dtype))


def reference(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    matmul_dtype: torch.dtype | None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    pre = pre_activations(x, W_enc, b_enc, matmul_dtype)
    order = pre.flatten().argsort(descending=True, stable=True)[: len(x) * k]
    flat = order[~(pre.flatten()[order] <= 0)].sort().values
    offsets = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
    offsets[1:] = torch.bincount(flat // pre.shape[1], minlength=len(x)).cumsum(0)
    values = pre.flatten()[flat].to(out_dtype or x.dtype)
    return values, (flat % pre.shape[1]).to(torch.int32), offsets


def _run(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    matmul_dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = dispatch.implementation("encode_batchtopk", x)
    if chosen == "reference":
        return reference(x, W_enc, b_enc, k, matmul_dtype, out_dtype)
    x, W, b, rounded = encoder_arguments(x, W_enc, b_enc, matmul_dtype)
    if chosen == "triton":
        operands = tensor_core_operands(x, W, rounded)
        kernel = dispatch.triton("encode_batchtopk").encode_batchtopk
        values, indices, offsets = kernel(*operands, b, k)
        return values.to(out_dtype or x.dtype), indices, offsets
    (N, d), F = x.shape, W.shape[0]
    arrays = dispatch.native().encode_batchtopk(
        x.data_ptr(), W.data_ptr(), b.data_ptr(),
        N, d, F, N * k, DTYPE_CODE[x.dtype], rounded, torch.get_num_threads(),
    )  # fmt: skip
    offsets, indices, values = (torch.from_numpy(array) for array in arrays)
    return values.to(out_dtype or x.dtype), indices, offsets


def _run_padded(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, matmul_dtype: torch.dtype | None
) -> tuple[Tensor, ...]:
    if dispatch.implementation("encode_batchtopk", x) == "triton" and len(x):
        x, W, b, rounded = encoder_arguments(x, W_enc, b_enc, matmul_dtype)
        kernels = dispatch.triton("encode_batchtopk")
        return kernels.padded(*tensor_core_operands(x, W, rounded), b, k)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return padded_outputs(_run(x, W_enc, b_enc, k, matmul_dtype, wide), len(x) * k)


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return fake_csr(x, rest[-1])


def _fake_padded(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, *_: Any) -> tuple[Tensor, ...]:
    return fake_padded(x, x.shape[0] * k)


_encode_batchtopk = register(
    "encode_batchtopk(Tensor x, Tensor W_enc, Tensor b_enc, int k,"
    " ScalarType? matmul_dtype, ScalarType? out_dtype) -> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
    setup_context,
    backward,
)

_encode_batchtopk_padded = register(
    "encode_batchtopk_padded(Tensor x, Tensor W_enc, Tensor b_enc, int k,"
    " ScalarType? matmul_dtype) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_padded,
    _fake_padded,
)

SPEC = OpSpec(
    "encode_batchtopk",
    "the N k largest positive entries of x W_encᵀ + b_enc",
    {"x": ("N d", FLOATS), "W_enc": ("F d", same("x")), "b_enc": ("F", FLOATS)},
    {"row_offsets": ("N+1", INT64), "indices": ("nnz", INT32), "values": ("nnz", same("x"))},
    "equal pre-activations: the lower token, then the lower feature; NaN above every number",
    lambda s: 2.0 * s.N * s.d * s.F,
    lambda s: 4.0 * (s.N * s.d + s.F * s.d + s.F) + 8.0 * s.N * s.k,
)
