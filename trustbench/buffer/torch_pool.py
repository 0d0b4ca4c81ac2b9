"""The buffer's pool by torch's indexing: for a CUDA device where trustbench._cuda is not built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trustbench import devices
from trustbench.errors import InputError, bad
from trustbench.ops import dispatch


class TorchPool:
    """The same slots in the same order as NativePool, without tiers, MXFP8 or several orders."""

    segment_tokens = tier_bytes = 0

    def __init__(
        self,
        widths: Mapping[str, int],
        kinds: Mapping[str, torch.dtype],
        capacity: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._slots, self._device = dispatch.native().Slots(capacity, seed), device
        self.rows = {
            name: torch.empty(capacity, width, dtype=kinds[name], device=device)
            for name, width in widths.items()
        }
        self._bad = {name: torch.zeros((), dtype=torch.int64, device=device) for name in widths}
        self.limit = self.most = capacity
        self.tokens_in = self.tokens_out = 0

    @property
    def pooled(self) -> int:
        """Tokens in the pool."""
        return self.tokens_in - self.tokens_out

    def out_dtype(self, name: str) -> torch.dtype:
        """Rows are handed out as stored."""
        return self.rows[name].dtype

    def _sent(self, slots: Any) -> Tensor:
        return devices.sent(torch.from_numpy(slots), self._device)

    def put(self, acts: Mapping[str, Tensor]) -> list[tuple[int, int]]:
        """Stores n tokens; rows that are not finite are counted for `bad_rows`."""
        n = len(next(iter(acts.values())))
        slots = self._sent(self._slots.offer(n))
        for name, store in self.rows.items():
            # A sum is finite only if all its terms are, and reads each value once.
            rows = acts[name].to(store.dtype)
            self._bad[name] += (~torch.isfinite(rows.sum(1, dtype=torch.float32))).sum()
            store.index_copy_(0, slots, rows)
        self._slots.commit(n)
        self.tokens_in += n
        return [(0, -1)] * len(self.rows)

    def take(self, n: int, out: Mapping[str, Tensor]) -> None:
        """n tokens at random."""
        self._gather(self._slots.take(n), out)
        self.tokens_out += n

    def peek(self, n: int, out: Mapping[str, Tensor]) -> None:
        """The pool's first n tokens; they stay."""
        self._gather(self._slots.occupied(n), out)

    def _gather(self, slots: Any, out: Mapping[str, Tensor]) -> None:
        places = self._sent(slots)
        for name, store in self.rows.items():
            torch.index_select(store, 0, places, out=out[name])

    def bad_rows(self) -> list[int]:
        """Rows of each hook point that were not finite since the last call. Waits for the device."""
        counts = torch.stack(list(self._bad.values())).tolist()
        for count in self._bad.values():
            count.zero_()
        return counts

    def state(self) -> dict[str, Any]:
        """All but the rows, ready for JSON; as NativePool has it."""
        return {
            "tokens_in": self.tokens_in, "tokens_out": self.tokens_out, "due": 0,
            "random": [list(self._slots.random)], "tiers_random": [0] * 4, "serial": 0,
            "segments": [], "has_next": False,
        }  # fmt: skip

    def held(self, name: str, state: Mapping[str, Any]) -> Tensor:
        """Stored rows of one hook point."""
        return self.rows[name].index_select(0, self._sent(self._slots.occupied(self.pooled))).cpu()

    def restore(self, state: Mapping[str, Any], held: Mapping[str, Tensor]) -> None:
        """What `state` and `held` said."""
        if state["segments"] or len(state["random"]) != 1:
            raise InputError(
                "buffer state: it has tiers or several orders, which need trustbench._cuda"
            )
        size = state["tokens_in"] - state["tokens_out"]
        for name, store in self.rows.items():
            saved = held[name]
            if tuple(saved.shape) != (size, store.shape[1]) or saved.dtype != store.dtype:
                raise bad(f"state of {name}", list(saved.shape), f"[{size}, {store.shape[1]}]")
            store[:size] = saved
        self.tokens_in, self.tokens_out = state["tokens_in"], state["tokens_out"]
        self._slots.restore(size, state["random"][0])

    def saved(self) -> None:
        """No files stand for a state."""

    forget = saved

    def close(self) -> None:
        """Let go of the memory."""
        self.rows = {}
