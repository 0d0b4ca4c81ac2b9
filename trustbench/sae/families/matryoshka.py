"""Matryoshka BatchTopK (Bussmann et al. 2025, arXiv:2503.17547): nested dictionaries in one.

    loss = mean over prefixes m of mean_n ‖x - b_dec - Σ_{i < F_m} acts_i W_dec,i‖²  +  AuxK

so that the first features reconstruct on their own, and stay general. An entry of feature i belongs
to every prefix that holds i: its gradient is that of the sum of their residuals.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trustbench import ops
from trustbench.errors import bad
from trustbench.ops import PaddedCode
from trustbench.ops.codes import entry_rows
from trustbench.sae.families import batchtopk
from trustbench.sae.families.base import AnyCode, How, Part, Terms, fits_of, with_auxk
from trustbench.sae.losses import LossTerms, auxk_loss


def prefixes(cfg: Any) -> list[int]:
    """Widths of the nested dictionaries, the last of them all: as given, or by halves."""
    F = cfg.d_sae
    widths = cfg.prefixes or [F >> n for n in (4, 3, 2, 1) if F >> n]
    widths = [width for width in widths if width != F]
    return [*widths, F]


def check(cfg: Any) -> None:
    """Prefixes ascend within the dictionary."""
    batchtopk.FAMILY.check(cfg)
    widths = prefixes(cfg)
    if any(not 0 < a < b for a, b in pairwise([*widths, cfg.d_sae + 1])):
        raise bad("prefixes", cfg.prefixes, f"ascending widths in [1, d_sae={cfg.d_sae}]")


def terms(view: Any, x: Tensor, y: Tensor, how: How) -> Terms:
    centred, widths = view.centred(x), prefixes(view.cfg)
    code = batchtopk.encode(view, centred, how)
    by_group = _grouped(code, widths, len(x))
    parts = ops.decode(code.values, code.indices, view.W_dec, by_group.row_offsets)
    parts = parts.view(len(x), len(widths), -1).float()
    residuals = parts.cumsum(1) + (view.b_dec - y.float())[:, None]
    squared = residuals.square().sum((1, 2)) / len(widths)
    # Of an entry of group j: the prefixes j, j + 1, ...
    summed = (residuals.flip(1).cumsum(1).flip(1) / len(widths)).to(y.dtype)
    main = Part(by_group, summed.view(-1, summed.shape[2]), repeat=len(widths))
    error = residuals[:, -1].to(y.dtype)
    terms = Terms(code, error, squared, main, summed[:, 0], fits=fits_of(code))
    return with_auxk(terms, view, centred, how)


def _grouped(code: AnyCode, widths: list[int], N: int) -> AnyCode:
    """The code with a row a token and group: features ascend, so each is a range of entries."""
    M = len(widths)
    bounds = torch.tensor(widths[:-1], dtype=torch.int32, device=code.indices.device)
    group = torch.bucketize(code.indices, bounds, right=True)
    if isinstance(code, PaddedCode):
        place = torch.arange(len(code.rows), device=group.device)
        rows = torch.where(place < code.row_offsets[-1], code.rows * M + group, N * M)
    else:
        rows = entry_rows(code.indices, code.row_offsets) * M + group
    ends = torch.arange(N * M + 1, device=rows.device, dtype=rows.dtype)
    offsets = torch.searchsorted(rows, ends)
    if isinstance(code, PaddedCode):
        kept = rows.clamp(max=max(N * M - 1, 0)).to(torch.int32)
        return code._replace(row_offsets=offsets, rows=kept)
    return code._replace(row_offsets=offsets)


def objective(sae: Any, x: Tensor, y: Tensor, dead: Tensor | None) -> LossTerms:
    code = batchtopk.encode(sae, sae.centred(x), How())
    widths = prefixes(sae.cfg)
    losses = []
    for width in widths:
        values = code.values * (code.indices < width)
        error, squared = ops.reconstruct(
            values, code.indices, sae.W_dec, sae.b_dec, y, code.row_offsets
        )
        losses.append(squared.mean())
    mse = torch.stack(losses).mean()
    auxk = auxk_loss(sae, x, error, dead)
    zero = x.new_zeros(())
    total = mse + sae.cfg.auxk_coefficient * auxk
    return LossTerms(total, mse, zero, auxk, y + error, code)


FAMILY = batchtopk.FAMILY._replace(
    name="matryoshka",
    about="nested BatchTopK dictionaries in one (Bussmann et al. 2025, arXiv:2503.17547)",
    uses=batchtopk.FAMILY.uses | {"prefixes"},
    terms=terms,
    objective=objective,
    check=check,
    prefixes=prefixes,
)
