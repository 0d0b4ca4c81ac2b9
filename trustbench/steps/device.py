"""What a step on a GPU needs beside its kernels: the memory of graphs, rooms, and joined entries."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trustbench.ops import PaddedCode
from trustbench.ops.codes import entry_rows
from trustbench.sae.families.base import AnyCode, Part


class GraphMemory:
    """What the graphs of all layers share: they run one after the other, on the same memory."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self._inputs: dict[tuple[Any, ...], Tensor] = {}

    def input_like(self, role: str, x: Tensor) -> Tensor:
        """The tensor that graphs read inputs of this role and shape from."""
        key = (role, *x.shape, x.dtype)
        if key not in self._inputs:
            self._inputs[key] = torch.empty_like(x)
        return self._inputs[key]


class Batch(NamedTuple):
    """What one step was called with; x and target (None: x) as the model gives them, scaled."""

    x: Tensor
    target: Tensor | None
    lr: float
    penalty_scale: float


def room(most: float) -> int:
    """A power of two with at least a third to spare: few sizes, few graphs."""
    return 1 << max(5, math.ceil(math.log2(max(1.5 * most, 1))))


def joined_entries(parts: list[Part]) -> tuple[Tensor, Tensor, Tensor | None]:
    """(values, indices, rows) of all parts' entries; None: k entries a row, in order."""
    if len(parts) == 1 and parts[0].code.row_offsets is None:
        return parts[0].code.values, parts[0].code.indices, None
    rows, before = [], 0
    for part in parts:
        rows.append(_rows(part.code).to(torch.int64) + before)
        before += len(part.residual)
    values = torch.cat([part.code.values.flatten() for part in parts])
    indices = torch.cat([part.code.indices.flatten() for part in parts])
    return values, indices, torch.cat(rows)


def _rows(code: AnyCode) -> Tensor:
    """The row of every entry."""
    if isinstance(code, PaddedCode):
        return code.rows
    return entry_rows(code.indices, code.row_offsets)


def held(code: AnyCode) -> Tensor:
    """1.0 for every entry of a code, 0.0 behind them."""
    if not isinstance(code, PaddedCode):
        return torch.ones_like(code.values)
    place = torch.arange(len(code.values), device=code.values.device)
    return (place < code.row_offsets[-1]).float()
