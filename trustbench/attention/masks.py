"""What a transformers model lets a query see, as attention_capture understands it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trustbench.ops.attention_masks import visible

_CHECKED_ROWS = 256  # queries whose keys are compared one by one


class Seen(NamedTuple):
    """Stands where transformers would hand a T × S mask to its attention."""

    causal: bool
    window: int | None
    segments: Tensor | None  # [B, S] int32; see attention_capture

    # Models that compute their attention in line take it for a tensor: MPT casts it, Falcon adds
    # ALiBi to one of four dimensions, and all hand it to functions of torch.
    @property
    def ndim(self) -> int:
        return 0

    def to(self, *_: Any, **__: Any) -> Seen:
        return self

    @classmethod
    def __torch_function__(cls, *_: Any) -> Any:
        return NotImplemented

    def narrowed(self, allowed: Tensor) -> Seen:
        """With one mask more: [1, 1, S, S], True where a query may see a key (GPT-Neo's window).

        Raises
        ------
        NotImplementedError
            For a mask that is neither causal nor windowed.
        """
        S = allowed.shape[-1]
        if allowed.numel() == S * S:
            allowed = allowed.view(S, S)
            causal, width = not bool(allowed.diagonal(1).any()), int(allowed[-1].sum())
            window = width if width < S else None
            rows = _checked_rows(S, allowed.device)
            if torch.equal(visible(rows, S, causal, window or 0, None), allowed[rows]):
                windows = [w for w in (self.window, window) if w is not None]
                return Seen(self.causal or causal, min(windows, default=None), self.segments)
        raise NotImplementedError("attention capture: a model's own mask is not causal or windowed")


def seen_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] | None = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Seen:
    """The mask function of AttentionMaskInterface: order, window and documents, found by asking.

    transformers describes a mask as a function of (batch, head, query, key). It is asked about
    neighbours, and what follows from that is compared with it on some hundred rows.

    Raises
    ------
    NotImplementedError
        For a mask that is none of causal, windowed, padded or packed.
    """
    if use_vmap or mask_function is None or kv_offset or q_offset + q_length != kv_length:
        raise NotImplementedError(
            "attention capture: masks given as functions, and caches, are not supported"
        )
    B, S = batch_size, kv_length
    batch = torch.arange(B, device=device)

    def ask(query: Tensor, key: Tensor) -> Tensor:
        """[B, *] for queries and keys of one shape."""
        shape = (B, *(1,) * query.dim())
        answer = mask_function(batch.view(shape), torch.zeros_like(query), query, key)
        return answer.expand(B, *torch.broadcast_shapes(query.shape, key.shape))

    at = torch.arange(S, device=device)
    causal = not bool(ask(at[:-1], at[1:]).any())
    # Neighbours that do not see each other belong to two documents, unless a window hides all.
    follows = ask(at[1:], at[:-1]) if local_size != 1 else torch.ones(B, S - 1, dtype=torch.bool)
    ids = torch.zeros(B, S, dtype=torch.int32, device=device)
    ids[:, 1:] = (~follows).cumsum(1).to(torch.int32)
    rows = _checked_rows(S, device)
    mine = visible(rows, S, causal, local_size or 0, ids)[:, 0]
    if not torch.equal(mine, ask(rows[:, None], at[None])):
        raise NotImplementedError(
            "attention capture: only causal, windowed, padded and packed masks are supported"
        )
    if attention_mask is not None:
        ids = ids.masked_fill(~attention_mask[:, :S].to(device=device, dtype=torch.bool), -1)
    plain = attention_mask is None and bool(follows.all())
    return Seen(causal, local_size, None if plain else ids)


def _checked_rows(S: int, device: torch.device | str) -> Tensor:
    return torch.linspace(0, S - 1, min(S, _CHECKED_ROWS), device=device).long()
