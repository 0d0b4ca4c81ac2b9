"""Whole patterns, a few rows at a time: what the statistics of one pass cannot tell.

Memory stays O(T); the time is another pass over all scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from trustbench.ops.attention_capture import relative, scores
from trustbench.ops.attention_masks import visible

_ROWS = 128  # queries whose patterns exist at once


class Form(NamedTuple):
    """How a layer attends; see attention_capture."""

    causal: bool
    window: int | None
    segments: Tensor | None  # [B, S]
    scale: float
    softcap: float | None
    key_bias: Tensor | None = None  # [B, H, S]


def patterns(q: Tensor, k: Tensor, lse: Tensor, form: Form, rows: Tensor) -> Tensor:
    """p = exp(s - lse) of some queries.

    Parameters
    ----------
    q : Tensor [B, H, T, D]
    k : Tensor [B, H_kv, S, D]
    lse : Tensor [B, H, T]
        Of attention_capture.
    form : Form
    rows : Tensor [R] int64
        Queries, in [0, T).

    Returns
    -------
    Tensor [B, H, R, S], fp32
    """
    (B, H, T, D), (H_kv, S) = q.shape, k.shape[1:3]
    grouped = q[:, :, rows].float().view(B, H_kv, H // H_kv, len(rows), D)
    s = scores(grouped, k.float()[:, :, None], form.scale, form.softcap or 0.0)
    s = s.view(B, H, len(rows), S)
    if form.key_bias is not None:
        s = s + relative(form.key_bias, rows + S - T)
    seen = visible(rows + S - T, S, form.causal, form.window or 0, form.segments)
    level = lse[:, :, rows].nan_to_num(neginf=0.0)
    return (s - level[..., None]).exp().masked_fill(~seen, 0)


def _blocks(q: Tensor, k: Tensor, lse: Tensor, form: Form) -> Iterator[tuple[Tensor, Tensor]]:
    """All queries, some at a time, and their patterns."""
    for rows in torch.arange(q.shape[2], device=q.device).split(_ROWS):
        yield rows, patterns(q, k, lse, form, rows)


def divergence(q: Tensor, k: Tensor, lse: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Jensen-Shannon divergence of heads' patterns, row by row.

    JSD(p_1..p_n) = H(mean p) - mean H(p) (Lin 1991), nats: 0 where all are equal, at most ln n.
    Patterns are normalised over the keys: a sink that is no key is left out.

    Parameters
    ----------
    q, k, lse, form
        As for `patterns`.

    Returns
    -------
    (within, between)
        within [B, H_kv, T]: among the query heads of a kv group. between [B, T]: among the groups'
        mean patterns. Rows that see no key have 0.
    """
    B, H, T = lse.shape
    H_kv = k.shape[1]
    within, between = lse.new_zeros(B, H_kv, T), lse.new_zeros(B, T)
    for rows, p in _blocks(q, k, lse, form):
        p = p / p.sum(-1, keepdim=True).clamp_min(1e-30)
        p = p.view(B, H_kv, H // H_kv, *p.shape[2:])
        mean = p.mean(2)
        within[..., rows] = (_entropy(mean) - _entropy(p).mean(2)).to(within.dtype)
        between[..., rows] = (_entropy(mean.mean(1)) - _entropy(mean).mean(1)).to(between.dtype)
    return within.clamp_min(0), between.clamp_min(0)


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


def by_distance(q: Tensor, k: Tensor, lse: Tensor, form: Form) -> Tensor:
    """The mean pattern by relative distance: [H, S], fp32.

    Element i is the mean probability of the key i positions before the query, over the queries
    of the batch that see a key there; 0 where there is none.

    Parameters
    ----------
    q, k, lse, form
        As for `patterns`.
    """
    (B, H, T), S = lse.shape, k.shape[2]
    sums, counts = lse.new_zeros(H, S), lse.new_zeros(S)
    for rows, p in _blocks(q, k, lse, form):
        at = rows + S - T
        away = at[:, None] - torch.arange(S, device=q.device)
        behind = away.clamp_min(0).flatten()
        seen = visible(at, S, form.causal, form.window or 0, form.segments) & (away >= 0)
        seen = seen.expand(B, 1, len(rows), S)
        counts.index_add_(0, behind, seen.sum((0, 1)).flatten().to(counts.dtype))
        kept = p.masked_fill(~seen, 0).sum(0).flatten(1).to(sums.dtype)
        sums.index_add_(1, behind, kept)
    return sums / counts.clamp_min(1)
