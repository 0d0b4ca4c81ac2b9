"""BatchTopK over a batch whose rows are encoded by several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustbench import ops
from trustbench.ops import CSRCode
from trustbench.ops.codes import entry_rows
from trustbench.team import Team


def encode_share(
    view: Any, centred: Tensor, most: int, team: Team, out_dtype: torch.dtype | None = None
) -> CSRCode:
    """This rank's rows of the code with the `most` largest positive pre-activations of all rows.

    Equal to `ops.encode_batchtopk` of all rows, ties to the lower row and feature included. Each rank
    proposes some more than its share of `most`; when a rank's whole proposal is taken it may have had
    still more, and all propose twice as many.

    Parameters
    ----------
    view : an SAE as a step reads it
    centred : Tensor [n, d]
        This rank's rows, scaled, without b_dec, n >= 1. Rows of lower ranks come first.
    most : int
        Entries of the whole batch.
    """
    k, F = view.cfg.k, view.cfg.d_sae
    proposed = min(k + k // 4 + 1, F)
    while True:
        code = ops.encode_batchtopk(
            centred, view.W_enc, view.b_enc, proposed,
            matmul_dtype=view.matmul_dtype, out_dtype=out_dtype,
        )  # fmt: skip
        count = torch.tensor([[len(code.values), len(centred) * proposed]], device=centred.device)
        counts = team.joined(count, [1] * team.size).tolist()
        every = team.joined(code.values, [n for n, _ in counts])
        kept, ties = _threshold(every, most)
        full = [
            len(values) == room and bool((values >= kept).all())
            for values, (_, room) in zip(every.split([n for n, _ in counts]), counts, strict=True)
        ]
        if not any(full) or proposed == F:
            break
        proposed = min(2 * proposed, F)
    before = sum(n for n, _ in counts[: team.rank])
    tied = every == kept
    chosen = (every > kept) | (tied & (tied.cumsum(0) <= ties)) | every.isnan()
    chosen = chosen[before : before + len(code.values)]
    rows = entry_rows(code.indices, code.row_offsets)[chosen]
    offsets = torch.zeros_like(code.row_offsets)
    offsets[1:] = torch.bincount(rows, minlength=len(centred)).cumsum(0)
    return CSRCode(offsets, code.indices[chosen], code.values[chosen])


def _threshold(values: Tensor, most: int) -> tuple[float, int]:
    """(the `most`-th largest value, how many equal to it are among those); (-inf, 0) when fewer."""
    if len(values) < most or most == 0:
        return float("-inf"), 0
    kept = values.topk(most, sorted=False).values
    least = kept.min()
    return float(least), int((kept == least).sum())
