"""relu_dense: all activations of a ReLU encoder, with their sums over tokens.

For codes with thousands of entries a token, where dense matmuls cost less than gathers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trustbench.ops import dispatch
from trustbench.ops.registration import (
    check_encoder,
    encoder_arguments,
    no_second_order,
    pre_activations,
    register,
)
from trustbench.ops.spec import FLOATS, INT32, OpSpec, same, wide


class DenseCode(NamedTuple):
    """Activations of all features, and their sums over tokens."""

    acts: Tensor  # [N, F], dtype of x
    mass: Tensor  # [F], fp32 (fp64 for fp64): Σ_n acts, before they are rounded to the dtype of x
    fired: Tensor  # [F], int32: on how many tokens acts > 0


def relu_dense(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> DenseCode:
    """acts = relu(x W_enc^T + b_enc), and the sums over tokens that L1 and L0 need.

    A NaN stays, so that it is seen. Has no gradient: see trustbench.steps.dense.

    Parameters
    ----------
    x : Tensor [N, d], fp32, bf16 or fp64 (fp64 runs the reference)
    W_enc : Tensor [F, d], dtype of x
    b_enc : Tensor [F]

    Raises
    ------
    InputError
        For a wrong shape or dtype.
    """
    check_encoder(x, W_enc, b_enc, None)
    return DenseCode(*_relu_dense(x, W_enc, b_enc))


def reference(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pre = pre_activations(x, W_enc, b_enc, None)
    acts = torch.where(pre <= 0, 0.0, pre)
    kept = acts.to(x.dtype)
    return kept, acts.sum(0), (kept > 0).sum(0).to(torch.int32)


def _run(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if dispatch.implementation("relu_dense", x, cpp=False) == "reference":
        return reference(x, W_enc, b_enc)
    x, W, b, _ = encoder_arguments(x, W_enc, b_enc, None)
    return dispatch.triton("relu_dense").relu_dense(x, W, b)


def _fake(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    N, F = x.shape[0], W_enc.shape[0]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(N, F), x.new_empty(F, dtype=wide), x.new_empty(F, dtype=torch.int32)


_relu_dense = register(
    "relu_dense(Tensor x, Tensor W_enc, Tensor b_enc) -> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
    backward=no_second_order("relu_dense"),
)

SPEC = OpSpec(
    "relu_dense",
    "relu(x W_encᵀ + b_enc), its sums and counts over tokens",
    {"x": ("N d", FLOATS), "W_enc": ("F d", same("x")), "b_enc": ("F", FLOATS)},
    {"acts": ("N F", same("x")), "mass": ("F", wide("x")), "fired": ("F", INT32)},
    "none: sums run over tokens in fixed parts",
    lambda s: 2.0 * s.N * s.d * s.F,
    lambda s: 4.0 * (s.N * s.d + s.F * s.d + s.N * s.F),
)
