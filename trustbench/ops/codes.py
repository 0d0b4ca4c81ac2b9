"""The sparse codes that ops exchange."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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


class FeatureCode(NamedTuple):
    """A code grouped by feature, tokens ascending; positions point into the code it came from."""

    feature_offsets: Tensor  # [F + 1], int64
    rows: Tensor  # [nnz], int32: the token of each entry
    positions: Tensor  # [nnz], int32: its place in the flattened values and indices


Code = TopKCode | CSRCode


def entry_rows(indices: Tensor, row_offsets: Tensor | None) -> Tensor:
    """The token of every entry of a code, int64, flat."""
    if row_offsets is None:
        n, k = indices.shape
        return torch.arange(n, device=indices.device).repeat_interleave(k)
    tokens = torch.arange(len(row_offsets) - 1, device=indices.device)
    return tokens.repeat_interleave(row_offsets.diff(), output_size=len(indices))
