"""What is captured of a layer's attention, in memory or in files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from trustbench import files
from trustbench.attention.linear import LinearAttention


class HeadAttention(NamedTuple):
    """Statistics of one layer's heads; see trustbench.ops.Attention for each."""

    lse: Tensor  # [B, H, T]
    entropy: Tensor  # [B, H, T]
    distance: Tensor  # [B, H, T]
    last: Tensor  # [B, H, T]
    top_p: Tensor  # [B, H, T, top]
    top_index: Tensor  # [B, H, T, top]
    first: Tensor  # [B, H, T]
    self_: Tensor  # [B, H, T]
    previous: Tensor  # [B, H, T]
    targets: Tensor  # [B, H, T, M]
    visible: Tensor  # [B, T]: how many keys each query sees
    # Only where they were asked for; see trustbench.attention.patterns.
    pattern: Tensor | None  # [B, H, R, T]: of the rows asked for
    by_distance: Tensor | None  # [H, T]
    within: Tensor | None  # [B, H_kv, T]: Jensen-Shannon divergence in a kv group
    between: Tensor | None  # [B, T]: between the groups


Layer = HeadAttention | LinearAttention


class AttentionFiles(Mapping[str, Layer]):
    """Layers in a directory: written as they are captured, read when they are asked for.

    One safetensors file a layer, with a tensor for every field that there is, and index.json with the
    layers' paths in order.

    Parameters
    ----------
    directory
        Of an earlier capture, or a new one.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        index = self.directory / "index.json"
        self._names: list[str] = files.read_json(index) if index.exists() else []

    def write(self, name: str, layer: Layer) -> None:
        """Add a layer, or replace it."""
        fields = {key: value for key, value in layer._asdict().items() if value is not None}
        files.save_tensors(self.directory / f"{name}.safetensors", fields)
        if name not in self._names:
            self._names.append(name)
            files.atomic_write_json(self.directory / "index.json", self._names)

    def __getitem__(self, name: str) -> Layer:
        if name not in self._names:
            raise KeyError(name)
        found = files.load_tensors(self.directory / f"{name}.safetensors")
        kind = LinearAttention if "decay" in found else HeadAttention
        return kind(**{field: found.get(field) for field in kind._fields})  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
