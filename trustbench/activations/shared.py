"""One source for several processes: each makes some pieces, and gives all of them their part."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trustbench.activations.cache import Rows
from trustbench.activations.sources import Source
from trustbench.errors import NonFiniteError, TrustbenchError
from trustbench.team import Team


class SharedSource:
    """A source whose pieces the ranks of a team make in turn, and hand to each other.

    All ranks pull the same tokens in the same order as a single process would; each gets the columns
    that it keeps, and runs the model for every size-th piece only.

    Parameters
    ----------
    source : Source
        The same on every rank.
    team : Team
    kept : list of {hook point: slice}
        By rank: the columns that it gets.
    dtype : torch.dtype
        Activations that are not finite in it are refused (on a GPU, the buffer reports them).
    """

    def __init__(
        self, source: Source, team: Team, kept: Sequence[Mapping[str, slice]], dtype: torch.dtype
    ) -> None:
        self.source, self.team, self.kept, self.dtype = source, team, kept, dtype
        mine = kept[team.rank]
        self.widths = {name: columns.stop - columns.start for name, columns in mine.items()}
        self.model_bytes, self.wirings = source.model_bytes, source.wirings
        # Pieces that are ready, each with the source's place before it.
        self._ready: deque[tuple[Any, Rows]] = deque()

    def pull(self) -> Rows:
        """This rank's columns of the next piece."""
        if not self._ready:
            self._round()
        return self._ready.popleft()[1]

    def skip(self) -> int:
        """Pass over the next piece; its tokens."""
        return len(self.pull().token_ids)

    def _round(self) -> None:
        """One piece for every rank to make."""
        places, counts, error = [], [], None
        piece: Rows | None = None
        try:
            for rank in range(self.team.size):
                places.append(self.source.state_dict())
                if rank == self.team.rank:
                    piece = self.source.pull()
                    _check(piece, self.dtype)
                    counts.append(len(piece.token_ids))
                else:
                    counts.append(self.source.skip())
        except TrustbenchError as raised:
            error = raised
        try:
            self.team.agree(error)
        except TrustbenchError:
            self.source.load_state_dict(places[0])
            raise
        assert piece is not None
        kinds = {name: acts.dtype for name, acts in piece.acts.items()}
        mine = self.kept[self.team.rank]
        each = 8 + sum(kinds[name].itemsize * self.widths[name] for name in mine)
        parcels = [_packed(piece, kept) for kept in self.kept]
        got = self.team.exchanged(parcels, [n * each for n in counts])
        for place, parcel, n in zip(places, got, counts, strict=True):
            self._ready.append((place, _unpacked(parcel, n, self.widths, kinds)))

    def state_dict(self) -> dict[str, Any]:
        """The place before the next piece."""
        return self._ready[0][0] if self._ready else self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place."""
        self._ready.clear()
        self.source.load_state_dict(state)


def _check(piece: Rows, dtype: torch.dtype) -> None:
    """NonFiniteError before any rank has stored something (a GPU is not waited for)."""
    for name, acts in piece.acts.items():
        if acts.device.type != "cpu":
            return
        rows = ~acts.to(dtype).isfinite().all(1)
        if bool(rows.any()):
            raise NonFiniteError(
                f"activations of {name}: NaN or Inf in {int(rows.sum())} of {len(acts)} rows of one"
                f" piece, first at row {int(rows.nonzero()[0])}"
            )


def _packed(piece: Rows, kept: Mapping[str, slice]) -> Tensor:
    """token_ids, positions and the kept columns of every hook point, one after the other: bytes."""
    acts = [piece.acts[name][:, columns] for name, columns in kept.items()]
    device = next(iter(piece.acts.values())).device
    parts = [piece.token_ids.to(device), piece.positions.to(device), *acts]
    return torch.cat([part.contiguous().flatten().view(torch.uint8) for part in parts])


def _unpacked(
    parcel: Tensor, n: int, widths: Mapping[str, int], kinds: Mapping[str, torch.dtype]
) -> Rows:
    sizes = [4 * n, 4 * n, *(n * width * kinds[name].itemsize for name, width in widths.items())]
    token_ids, positions, *acts = parcel.split(sizes)
    rows = {
        name: _as(part, kinds[name]).view(n, width)
        for (name, width), part in zip(widths.items(), acts, strict=True)
    }
    return Rows(rows, _as(token_ids, torch.int32), _as(positions, torch.int32))


def _as(part: Tensor, kind: torch.dtype) -> Tensor:
    """Bytes as numbers: a copy where they do not start at a whole number."""
    return (part if part.storage_offset() % 16 == 0 else part.clone()).view(kind)
