"""MXFP8 rows as csrc/kernels/mx8.h defines them, in plain PyTorch: the kernels agree bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
LARGEST = 1.875 * 2.0**127  # larger ones would be rounded to 2^128
NAN_SCALE = 255

# The numbers that E4M3 codes 0 to 126 stand for.
E4M3 = torch.tensor(
    [c * 2.0**-9 if c < 8 else (1 + c % 8 / 8) * 2.0 ** (c // 8 - 7) for c in range(127)],
    dtype=torch.float64,
)


def row_bytes(d: int) -> int:
    return -(-(d + -(-d // BLOCK)) // 16) * 16


def to_e4m3(y: Tensor) -> Tensor:
    """Codes of float64 numbers of at most 448: the nearest one, the even one of two."""
    size = y.abs()
    above = torch.searchsorted(E4M3, size)
    below = (above - 1).clamp(min=0)
    middle = (E4M3[below] + E4M3[above]) / 2
    up = (size > middle) | ((size == middle) & (above % 2 == 0))
    return torch.where(up, above, below) + 128 * y.signbit()


def encode(x: Tensor) -> Tensor:
    """Rows of [n, d] numbers as bytes [n, row_bytes(d)]."""
    n, d = x.shape
    blocks = -(-d // BLOCK)
    padded = torch.zeros(n, blocks * BLOCK, dtype=torch.float64)
    padded[:, :d] = x
    numbers = padded.view(n, blocks, BLOCK)
    finite = numbers.isfinite().all(-1)
    numbers = numbers.where(finite[..., None], 0).clamp(-LARGEST, LARGEST)

    half, exponent = numbers.abs().amax(-1).frexp()  # half in [0.5, 1), or both 0
    e = exponent - 1 - 8 + (half > 1.75 / 2).to(torch.int32)
    e = torch.where(half == 0, -110, e).clamp(min=-110)
    codes = to_e4m3(numbers * torch.exp2(-e.double())[..., None])

    rows = torch.zeros(n, row_bytes(d), dtype=torch.uint8)
    rows[:, :d] = codes.flatten(1)[:, :d]
    rows[:, d : d + blocks] = torch.where(finite, e + 127, NAN_SCALE)
    return rows


def decode(rows: Tensor, d: int) -> Tensor:
    """The numbers of rows, float64 [n, d]."""
    blocks = -(-d // BLOCK)
    codes, scales = rows[:, :d].long(), rows[:, d : d + blocks].long()
    unit = torch.where(scales == NAN_SCALE, torch.nan, torch.exp2(scales.double() - 127))
    sign = 1 - 2 * (codes // 128).double()
    return sign * E4M3[codes % 128] * unit.repeat_interleave(BLOCK, 1)[:, :d]
