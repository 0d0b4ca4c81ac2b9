"""Which keys a query sees: causal order, sliding windows, padding and packed documents."""

from __future__ import annotations

import torch
from torch import Tensor


def visible(position: Tensor, S: int, causal: bool, window: int, segments: Tensor | None) -> Tensor:
    """Boolean [T, S], or [B, 1, T, S] with segments, for queries at `position` [T] among S keys.

    See attention_capture for the meaning; window 0 is none.
    """
    away = position[:, None] - torch.arange(S, device=position.device)
    seen = torch.ones_like(away, dtype=torch.bool)
    if causal:
        seen &= away >= 0
    if window:
        seen &= away.abs() < window
    if segments is None:
        return seen
    mine = segments[:, position]
    return (seen & (mine[:, :, None] == segments[:, None]) & (mine >= 0)[:, :, None])[:, None]


def visible_counts(
    B: int, T: int, S: int, causal: bool, window: int | None, segments: Tensor | None,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """How many keys each query sees: [B, T] int64, in O(T) memory."""
    at = torch.arange(S - T, S, device=device)
    low = at - (window - 1) if window else torch.zeros_like(at)
    high = at if causal else (at + (window - 1) if window else torch.full_like(at, S - 1))
    low, high = low.clamp(0, S), high.clamp(-1, S - 1)
    if segments is None:
        return (high - low + 1).clamp_min(0).expand(B, T)
    mine, keyed, _ = _by_segment(segments, at)
    upper = torch.searchsorted(keyed, mine * S + high, right=True)
    lower = torch.searchsorted(keyed, mine * S + low)
    return (upper - lower).clamp_min(0).masked_fill(mine < 0, 0)


def first_keys(segments: Tensor | None, B: int, T: int, S: int, device: torch.device) -> Tensor:
    """The first position of every query's segment: [B, T] int32; -1 for padding."""
    if segments is None or not S:
        return torch.zeros(B, T, dtype=torch.int32, device=device)
    mine, keyed, order = _by_segment(segments, torch.arange(S - T, S, device=device))
    first = order.gather(1, torch.searchsorted(keyed, mine * S).clamp_max(S - 1))
    return first.masked_fill(mine < 0, -1).to(torch.int32)


def _by_segment(segments: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries' segments [B, T]; keys as segment * S + position, ascending; their positions."""
    ids, S = segments.long(), segments.shape[1]
    order = ids.argsort(dim=1, stable=True)
    return ids[:, at].contiguous(), (ids.gather(1, order) * S + order).contiguous(), order
