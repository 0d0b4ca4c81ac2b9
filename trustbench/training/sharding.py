"""Which process of a run trains which wirings, and keeps which activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trustbench.errors import bad
from trustbench.sae.wiring import Wiring
from trustbench.team import Team

_BLOCK = 32  # columns that MXFP8 stores with one scale


class Sharding:
    """The shares of a team.

    "layers": a rank trains its share of the wirings, on activations that it alone keeps (but where
    wirings of several ranks have a hook point in common).

    "tokens": every rank trains every wiring on its share of each batch. Of the buffered activations a
    rank keeps some columns of every token, so that all buffers hold the same tokens in the same
    order, and together take the memory of one.

    Parameters
    ----------
    team : Team
    parallel : "layers" or "tokens"
    wirings : sequence of Wiring
        All of them.
    widths : {hook point: d}
        Of all of theirs.

    Attributes
    ----------
    kept : list of {hook point: slice}
        By rank: the columns that it keeps.
    trained : list of Wiring
        Those that this rank trains.
    """

    def __init__(
        self, team: Team, parallel: str, wirings: Sequence[Wiring], widths: Mapping[str, int]
    ) -> None:
        self.team, self.wirings, self.widths = team, list(wirings), dict(widths)
        self.columns = parallel == "tokens" and team.size > 1
        if self.columns:
            narrowest = min(-(-d // _BLOCK) for d in widths.values())
            if team.size > narrowest:
                raise bad(
                    "parallel", f"tokens, on {team.size} processes", f"at most {narrowest} here"
                )
            self.kept = [
                {name: self._share(d, rank) for name, d in widths.items()}
                for rank in range(team.size)
            ]
            self.trained = self.wirings
            return
        count = len(self.wirings)
        if team.size > count:
            raise bad(
                "parallel", f"layers, on {team.size} processes",
                f"at most one for each of the {count} hook points, or tokens",
            )  # fmt: skip
        parts = [self.wirings[team.share(count, rank)] for rank in range(team.size)]
        wanted = [{point for wiring in part for point in wiring.hook_points} for part in parts]
        self.kept = [
            {name: slice(0, d) for name, d in widths.items() if name in points} for points in wanted
        ]
        self.trained = parts[team.rank]

    def _share(self, d: int, rank: int) -> slice:
        blocks = self.team.share(-(-d // _BLOCK), rank)
        return slice(blocks.start * _BLOCK, min(blocks.stop * _BLOCK, d))

    @property
    def kept_widths(self) -> dict[str, int]:
        """{hook point: columns} of what this rank's buffer keeps."""
        return {name: _width(columns) for name, columns in self.kept[self.team.rank].items()}

    def writes(self, wiring: str) -> bool:
        """Whether this rank writes a wiring's files."""
        if not self.columns:
            return any(wiring == mine.name for mine in self.trained)
        return self.names.index(wiring) % self.team.size == self.team.rank

    def stores(self, hook_point: str) -> bool:
        """Whether this rank writes a hook point's activations."""
        if self.columns:
            return list(self.widths).index(hook_point) % self.team.size == self.team.rank
        keepers = [rank for rank, kept in enumerate(self.kept) if hook_point in kept]
        return keepers[0] == self.team.rank

    @property
    def names(self) -> list[str]:
        """Of all wirings."""
        return [wiring.name for wiring in self.wirings]

    def whole(self, name: str, rows: Tensor) -> Tensor:
        """All columns [n, d] of rows of which every rank has its own."""
        return torch.cat(self._parts(name, rows), 1) if self.columns else rows

    def whole_stored(self, name: str, rows: Tensor) -> Tensor:
        """The same of rows as the buffer stores them (csrc/kernels/mx8.h: codes, scales, zeros)."""
        if not self.columns:
            return rows
        parts = self._parts(name, rows)
        if rows.dtype != torch.uint8:
            return torch.cat(parts, 1)
        codes, scales = [], []
        for part, kept in zip(parts, self.kept, strict=True):
            d = _width(kept[name])
            codes.append(part[:, :d])
            scales.append(part[:, d : d + -(-d // _BLOCK)])
        return _padded(torch.cat(codes + scales, 1))

    def part_stored(self, name: str, rows: Tensor) -> Tensor:
        """This rank's of rows as a buffer with all columns stores them."""
        if not self.columns:
            return rows
        kept = self.kept[self.team.rank][name]
        if rows.dtype != torch.uint8:
            return rows[:, kept]
        first = self.widths[name] + kept.start // _BLOCK
        scales = rows[:, first : first + -(-_width(kept) // _BLOCK)]
        return _padded(torch.cat([rows[:, kept], scales], 1))

    def _parts(self, name: str, rows: Tensor) -> list[Tensor]:
        n = len(rows)
        width = _stored_width if rows.dtype == torch.uint8 else _width
        wide = [width(kept[name]) for kept in self.kept]
        flat = self.team.joined(rows.flatten(), [n * columns for columns in wide])
        parts = flat.split([n * columns for columns in wide])
        return [part.view(n, columns) for part, columns in zip(parts, wide, strict=True)]


def _width(columns: slice) -> int:
    return columns.stop - columns.start


def _stored_width(columns: slice) -> int:
    """Bytes of an MXFP8 row: codes, scales, zeros up to whole 16 bytes."""
    d = _width(columns)
    return -(-(d + -(-d // _BLOCK)) // 16) * 16


def _padded(rows: Tensor) -> Tensor:
    """With zeros, to whole 16 bytes a row."""
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % 16))
