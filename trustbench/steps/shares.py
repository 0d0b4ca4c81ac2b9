"""What several processes divide of one SAE's step: tokens are encoded, features updated, in shares.

    every process:  its rows of the batch -> code, residual
    all of them:    the codes and residuals of all rows (k (4 + 4) + 4 d bytes a token)
    every process:  its features' gradients, from all rows, straight into Adam
    all of them:    the new weights

Gradients are neither written nor summed over processes, Adam's moments exist once in the whole team,
and every feature's sums run over the same tokens in the same order as on one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from trustbench.errors import bad
from trustbench.ops import CSRCode, FeatureCode, TopKCode
from trustbench.sae.families.base import Family, How, Part, Terms
from trustbench.steps.batchtopk_shares import encode_share
from trustbench.team import Team


class Shares:
    """This process's share of an SAE; all of it in a team of one.

    Parameters
    ----------
    team : Team
    F : int
        Features of the SAE.
    whole : bool
        Every process updates all features.
    """

    def __init__(self, team: Team, F: int, *, whole: bool = False) -> None:
        if team.size > F:
            raise bad("parallel", f"tokens, on {team.size} processes", f"at most d_sae={F}")
        self.team, self.alone = team, team.size == 1
        self.split = not (whole or self.alone)
        self.features = team.share(F) if self.split else slice(0, F)
        self.ends = [team.share(F, rank).stop for rank in range(team.size)]

    def rows(self, n: int) -> tuple[slice, list[int]] | None:
        """(This process's rows of n, how many each has); None where each has all of them."""
        if self.alone or n < self.team.size:
            return None
        shares = [self.team.share(n, rank) for rank in range(self.team.size)]
        return shares[self.team.rank], [share.stop - share.start for share in shares]

    # ---------------------------------------------------------------- rows in shares

    def terms(self, family: Family, view: Any, x: Tensor, y: Tensor, how: How) -> Terms:
        """The terms of all rows of x, of which each process computes some."""
        assert family.terms is not None
        divided = self.rows(len(x))
        if divided is None:
            return family.terms(view, x, y, how)
        mine, counts = divided
        if family.entries == "batch":
            how = how._replace(batchtopk=self._of_all_rows(view.cfg.k * len(x)))
        part = family.terms(view, x[mine], y[mine], how)
        error, squared = (self.team.joined(t, counts) for t in (part.error, part.squared))
        code = self._code(part.code, counts)
        main = self._part(part, part.main, code, error, counts)
        return part._replace(
            code=code,
            error=error,
            squared=squared,
            main=main,
            bias=error if part.bias is part.error else self.team.joined(part.bias, counts),
            auxk=None if part.auxk is None else self._part(part, part.auxk, None, None, counts),
            entries={name: self._entries(t, part.code, counts) for name, t in part.entries.items()},
        )

    def _of_all_rows(self, most: int) -> Callable[..., CSRCode]:
        return lambda view, centred, how: encode_share(view, centred, most, self.team, how.dtype)

    def _part(
        self, terms: Terms, part: Part, code: Any, error: Tensor | None, counts: list[int]
    ) -> Part:
        """A part of all rows; what it has in common with the terms is not joined twice."""
        rows = [part.repeat * n for n in counts]
        if part.code is not terms.code or code is None:
            code = self._code(part.code, rows)
        residual = error if part.residual is terms.error else None
        if residual is None:
            residual = self.team.joined(part.residual, rows)
        return part._replace(code=code, residual=residual)

    def _code(self, part: Any, counts: list[int]) -> Any:
        """The code of all rows."""
        if isinstance(part, TopKCode):
            return TopKCode(*(self.team.joined(t, counts) for t in part))
        entries = self.team.joined(part.row_offsets.diff(), counts)
        offsets = entries.new_zeros(len(entries) + 1)
        offsets[1:] = entries.cumsum(0)
        each = [int(n.sum()) for n in entries.split(counts)]
        values, indices = (self.team.joined(t, each) for t in (part.values, part.indices))
        return CSRCode(offsets, indices, values)

    def _entries(self, mine: Tensor, code: Any, counts: list[int]) -> Tensor:
        """What belongs to the entries of a CSR code, of all rows."""
        entries = self.team.joined(code.row_offsets.diff(), counts)
        return self.team.joined(mine, [int(n.sum()) for n in entries.split(counts)])

    # ---------------------------------------------------------------- features in shares

    def by_feature(self, values: Tensor, whole: FeatureCode) -> tuple[Tensor, FeatureCode]:
        """(values, entries grouped by feature) of the features that this process updates."""
        if not self.split:
            return values, whole
        edges = whole.feature_offsets[self.features.start : self.features.stop + 1]
        first, last = edges[[0, -1]].tolist()
        positions = whole.positions[first:last]
        places = torch.arange(last - first, dtype=torch.int32, device=positions.device)
        code = FeatureCode((edges - first).contiguous(), whole.rows[first:last].contiguous(), places)
        return values.flatten()[positions.long()], code

    def entries_of(self, flat: Tensor | None, whole: FeatureCode) -> Tensor | None:
        """What belongs to the entries, in the order of `by_feature`'s values."""
        return None if flat is None else self.by_feature(flat, whole)[0]

    def summed(self, squared: float, through_x: Tensor) -> tuple[float, Tensor]:
        """What the updates of all features give together."""
        if not self.split:
            return squared, through_x
        # In the order of processes, so that all of them get the same bits.
        mine = torch.cat([through_x.double(), through_x.new_tensor([squared], dtype=torch.float64)])
        total = self.team.joined(mine[None], [1] * self.team.size).sum(0)
        return float(total[-1]), total[:-1].to(through_x.dtype)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Make every process's rows of the updated tensors [F, ...] those of all."""
        for tensor in tensors if self.split else ():
            self.team.fill(tensor, self.ends)

    def whole(self, rows: Tensor) -> Tensor:
        """All features' rows of a tensor of which each process has its own."""
        if not self.split or not rows.ndim:
            return rows
        starts = [0, *self.ends[:-1]]
        return self.team.joined(rows, [b - a for a, b in zip(starts, self.ends, strict=True)])
