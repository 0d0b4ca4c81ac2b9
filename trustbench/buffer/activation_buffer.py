"""ActivationBuffer: activations in, well-mixed batches out, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from trustbench import devices
from trustbench.errors import InputError, NonFiniteError, bad

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class ActivationBuffer:
    """A pool of activations of several hook points, taken from at random without replacement.

    `put` appends tokens behind the occupied slots; `take` draws distinct slots uniformly, hands out
    their rows, and moves the last rows into the holes. Both cost time in the tokens they handle, not
    in the size of the pool.

    The mixing this gives: every stored token is equally likely in every batch, whatever its age. With
    `capacity` C and batches of n taken from a full pool, a token waits a geometric number of batches,
    C / n on average, so the tokens of one document are spread over about C / n batches, and a batch
    holds tokens of about C / (tokens a document) documents. It is a full shuffle when C is the whole
    data set. All hook points share one order: row i of a batch is one token everywhere.

    Every token is handed out exactly once. Memory is `nbytes`, fixed when the buffer is made.

    Parameters
    ----------
    widths : mapping of hook point name to d
    capacity : int
        Tokens the pool holds.
    dtype : torch.dtype, or a mapping of hook point name to torch.dtype
        Storage: fp32, bf16 or fp16.
    seed : int
    device : torch.device
        Where the pool lies, and what `put` takes and `take` returns.

    Attributes
    ----------
    tokens_in, tokens_out : int
        Exact counts over the buffer's life.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        capacity: int,
        *,
        dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not widths:
            raise bad("widths", dict(widths), "at least one hook point")
        if capacity < 1:
            raise bad("capacity", capacity, "an integer >= 1")
        self.widths, self.capacity = dict(widths), capacity
        self.tokens_in = self.tokens_out = 0
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._store: dict[str, Tensor] = {}
        for name, width in self.widths.items():
            kind = dtype if isinstance(dtype, torch.dtype) else dtype.get(name)
            if kind not in _DTYPES:
                raise bad(f"dtype of {name}", kind, ", ".join(map(str, _DTYPES)))
            self._store[name] = torch.empty(capacity, width, dtype=kind, device=device)
        self.device = torch.device(device)
        # On a GPU: how many rows of each hook point were not finite, for `check_finite`.
        self._bad = {name: torch.zeros((), dtype=torch.int64, device=device) for name in self.widths}

    def __len__(self) -> int:
        """Tokens stored now."""
        return self.tokens_in - self.tokens_out

    @property
    def space(self) -> int:
        """Tokens that `put` can still take."""
        return self.capacity - len(self)

    @property
    def nbytes(self) -> int:
        """Bytes of the pool: its bound as well as its use."""
        return sum(store.nbytes for store in self._store.values())

    def put(self, acts: Mapping[str, Tensor]) -> None:
        """Store n tokens: {hook point: [n, d]}, all hook points, rows in the same order.

        Raises
        ------
        InputError
            For missing or unknown hook points, a wrong shape, or more tokens than `space`.
        NonFiniteError
            For NaN or Inf, with hook point and row. Nothing is stored then. On a GPU, which is not
            waited for here, `check_finite` raises it later.
        """
        if acts.keys() != self._store.keys():
            raise bad("acts", sorted(acts), f"the hook points {sorted(self._store)}")
        n = len(next(iter(acts.values())))
        for name, rows in acts.items():
            if tuple(rows.shape) != (n, self.widths[name]):
                raise bad(f"acts[{name!r}].shape", list(rows.shape), f"[{n}, {self.widths[name]}]")
            if not rows.is_floating_point():
                raise bad(f"acts[{name!r}].dtype", rows.dtype, "a floating-point dtype")
        if n > self.space:
            raise bad("acts", f"{n} tokens", f"at most space={self.space}")
        for name, rows in acts.items():
            if self.device.type == "cuda":
                self._bad[name] += (~torch.isfinite(rows.sum(1, dtype=torch.float32))).sum()
                continue
            # A sum is finite only if all its terms are, and reads each value once.
            if not torch.isfinite(rows.sum(dtype=torch.float64)):
                finite = torch.isfinite(rows).all(1)
                if not finite.all():
                    row = int((~finite).nonzero()[0])
                    raise NonFiniteError(
                        f"activations of {name}: NaN or Inf in {int((~finite).sum())} of {n} rows,"
                        f" first at row {row} (token {self.tokens_in + row} of the run)"
                    )
        at = len(self)
        for name, rows in acts.items():
            self._store[name][at : at + n] = rows
        self.tokens_in += n

    def check_finite(self) -> None:
        """NonFiniteError when rows put since the last check held NaN or Inf (on a GPU; waits for it).

        They are in the pool: training skips a batch that holds one of them (see DeviceTrainer).
        """
        counts = torch.stack(list(self._bad.values())).tolist()
        for name, count in zip(self._bad, counts, strict=True):
            self._bad[name].zero_()
            if count:
                raise NonFiniteError(
                    f"activations of {name}: NaN or Inf in {count} rows, among the {self.tokens_in}"
                    " tokens so far"
                )

    def take(self, n: int) -> dict[str, Tensor]:
        """n tokens at random: {hook point: [n, d]}, new contiguous tensors in the storage dtype.

        Raises
        ------
        InputError
            When n is not in [1, len(self)].
        """
        size = len(self)
        if not 1 <= n <= size:
            raise bad("n", n, f"an integer in [1, len={size}]")
        chosen = self._rng.choice(size, n, replace=False)
        # The occupied slots stay a prefix: rows of the tail that were not chosen fill the holes.
        tail = np.setdiff1d(np.arange(size - n, size), chosen, assume_unique=True)
        holes = np.sort(chosen[chosen < size - n])
        picked, source, target = (
            devices.sent(torch.from_numpy(a), self.device) for a in (chosen, tail, holes)
        )
        batch = {}
        for name, store in self._store.items():
            batch[name] = store.index_select(0, picked)
            store[target] = store.index_select(0, source)
        self.tokens_out += n
        return batch

    def peek(self, n: int) -> dict[str, Tensor]:
        """The first min(n, len) stored tokens, without taking them: a sample to measure on."""
        return {name: store[: min(n, len(self))].clone() for name, store in self._store.items()}

    def state_dict(self) -> dict[str, Any]:
        """{"tensors": {name: Tensor}, "meta": JSON-able}: everything, bit for bit."""
        return {
            # On the host: a second pool would not fit a GPU.
            "tensors": {
                name: store[: len(self)].to("cpu", copy=True) for name, store in self._store.items()
            },
            "meta": {
                "tokens_in": self.tokens_in,
                "tokens_out": self.tokens_out,
                "capacity": self.capacity,
                "rng": self._rng.bit_generator.state,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict` of a buffer made with the same arguments."""
        meta, tensors = state["meta"], state["tensors"]
        if tensors.keys() != self._store.keys() or meta["capacity"] != self.capacity:
            raise InputError("buffer state: it belongs to other hook points or another capacity")
        size = meta["tokens_in"] - meta["tokens_out"]
        for name, rows in tensors.items():
            store = self._store[name]
            if tuple(rows.shape) != (size, store.shape[1]) or rows.dtype != store.dtype:
                raise bad(f"state of {name}", list(rows.shape), f"[{size}, {store.shape[1]}]")
            store[:size] = rows
        self.tokens_in, self.tokens_out = meta["tokens_in"], meta["tokens_out"]
        self._rng.bit_generator.state = meta["rng"]

    def batches(self, n: int) -> Iterator[dict[str, Tensor]]:
        """Batches of n until the buffer is empty; the last may be smaller."""
        while len(self):
            yield self.take(min(n, len(self)))

    def close(self) -> None:
        """Free the pool; what it still holds is lost."""
        self._store = {name: store[:0].clone() for name, store in self._store.items()}
        self.tokens_out, self.capacity = self.tokens_in, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
