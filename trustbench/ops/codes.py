"""The sparse codes that ops exchange."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trustbench.ops.spec import INT32, INT64, Tensors


class TopKCode(NamedTuple):
    """k entries a token, largest first. An entry whose pre-activation is <= 0 has value 0."""

    values: Tensor  # [N, k], dtype of x
    indices: Tensor  # [N, k], int32

    @property
    def row_offsets(self) -> None:
        """TopK rows all have k entries: no offsets are stored."""
        return None


class CSRCode(NamedTuple):
    """Any number of entries a token; within a token the features ascend."""

    row_offsets: Tensor  # [N + 1], int64: token n has entries row_offsets[n] .. row_offsets[n + 1]
    indices: Tensor  # [nnz], int32
    values: Tensor  # [nnz], dtype of x


class PaddedCode(NamedTuple):
    """A CSR code in memory of a size fixed beforehand, so that nobody waits to learn its size.

    Behind the entries lie zeros. Where `fits` is False there was too little room: the code is not
    the one that was asked for, but nothing in it leads out of memory.
    """

    row_offsets: Tensor  # [N + 1], int64; none exceeds the room
    indices: Tensor  # [room], int32
    values: Tensor  # [room], fp32
    rows: Tensor  # [room], int32: the token of every entry
    fits: Tensor  # bool [1]


class FeatureCode(NamedTuple):
    """A code grouped by feature, tokens ascending; positions point into the code it came from.

    Arrays may be longer than feature_offsets[-1]; what lies behind means nothing.
    """

    feature_offsets: Tensor  # [F + 1], int64
    rows: Tensor  # [nnz], int32: the token of each entry
    positions: Tensor  # [nnz], int32: its place in the flattened values and indices


Code = TopKCode | CSRCode

# What `code` is to an op's SPEC.
FEATURE_CODE: Tensors = {
    "code.feature_offsets": ("F+1", INT64),
    "code.rows": ("nnz", INT32),
    "code.positions": ("nnz", INT32),
}


def padded(code: CSRCode, room: int) -> PaddedCode:
    """A code that is there, in `room` places: what the padded encoders are defined by."""
    nnz, kept = len(code.values), min(len(code.values), room)
    values, indices = code.values.new_zeros(room), code.indices.new_zeros(room)
    rows = code.indices.new_zeros(room)
    values[:kept], indices[:kept] = code.values[:kept], code.indices[:kept]
    rows[:kept] = entry_rows(code.indices, code.row_offsets)[:kept].to(torch.int32)
    fits = torch.tensor([nnz <= room], device=values.device)
    return PaddedCode(code.row_offsets.clamp(max=room), indices, values, rows, fits)


def entry_rows(indices: Tensor, row_offsets: Tensor | None) -> Tensor:
    """The token of every entry of a code, int64, flat."""
    if row_offsets is None:
        n, k = indices.shape
        return torch.arange(n, device=indices.device).repeat_interleave(k)
    tokens = torch.arange(len(row_offsets) - 1, device=indices.device)
    return tokens.repeat_interleave(row_offsets.diff(), output_size=len(indices))
