"""What is said once about an op, as data: its definition, its tensors, and the floor of its cost.

tests/ops/test_contracts.py holds every op to it, and docs/ops.md is written from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

FP32, BF16 = (torch.float32,), (torch.bfloat16,)
INT32, INT64 = (torch.int32,), (torch.int64,)
FULL = (torch.float32, torch.float64)
FLOATS = (torch.float32, torch.bfloat16, torch.float64)  # float64 runs the reference only


class Follows(NamedTuple):
    """Dtypes that depend on that of another tensor."""

    tensor: str
    allowed: Callable[[torch.dtype], tuple[torch.dtype, ...]]
    words: str


def same(tensor: str) -> Follows:
    """The dtype of `tensor`."""
    return Follows(tensor, lambda t: (t,), f"that of `{tensor}`")


def wide(tensor: str) -> Follows:
    """The dtype of sums over `tensor`."""
    words = f"fp32, or fp64 where `{tensor}` is"
    return Follows(tensor, lambda t: FULL[1:] if t == torch.float64 else FP32, words)


def same_or_fp32(tensor: str) -> Follows:
    """The dtype of `tensor`, which bf16 weights do not hold a code's values to."""
    words = f"that of `{tensor}`, or fp32 where it is bf16"
    return Follows(tensor, lambda t: (t, *(FP32 if t == torch.bfloat16 else ())), words)


# {name: (its sizes, its dtypes)}. Sizes stand between spaces: a name, a name + 1, or a number. "or":
# of a code with k entries a token, or of one with row offsets. "code.rows" is a part of `code`.
Tensors = dict[str, tuple[str, tuple[torch.dtype, ...] | Follows]]


class Shape(NamedTuple):
    """Sizes of one case: tokens, d_in, d_sae, active features a token."""

    N: int
    d: int
    F: int
    k: int


class OpSpec(NamedTuple):
    """One op. `flops` and `bytes` are the least that any implementation in fp32 must do and move."""

    name: str
    definition: str
    tensors: Tensors  # arguments, in the order of the signature
    returns: Tensors
    ties: str  # which of equals comes first, or the order of the sums: what makes it deterministic
    flops: Callable[[Shape], float]
    bytes: Callable[[Shape], float]


# Shapes that every op is checked on: no size a multiple of a tile, d odd, k at both ends, no tokens.
TEST_SHAPES = (
    Shape(1, 1, 1, 1),
    Shape(0, 16, 32, 4),
    Shape(5, 7, 33, 1),
    Shape(37, 130, 515, 9),
    Shape(9, 515, 70, 5),
    Shape(13, 33, 40, 40),
    Shape(100, 64, 1000, 32),
)

# Shapes that every op is timed on; the first is the one the README's figures are for.
BENCHMARK_SHAPES = (Shape(2048, 512, 16384, 32), Shape(1024, 1024, 32768, 64))
