"""What is said once about an op, as data: its name, its definition, and the floor of its cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float64)  # float64 runs the reference only


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
    shapes: dict[str, str]  # of every tensor argument, and of the result ("returns")
    dtypes: tuple[torch.dtype, ...]  # of its floating-point tensors; float64 runs the reference
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
