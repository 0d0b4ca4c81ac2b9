"""ActivationBuffer: activations in, well-mixed batches out, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from trustbench import devices
from trustbench.errors import InputError, NonFiniteError, bad
from trustbench.ops import dispatch

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # RowKind of csrc/kernels.h


class ActivationBuffer:
    """A pool of activations of several hook points, taken from at random without replacement.

    `put` writes tokens into free slots; `take` draws distinct occupied slots uniformly and hands out
    their rows. Nothing else moves: both cost time in the tokens they handle, not in the size of the
    pool. Which slots these are is decided in C++ (csrc/slots.h), for every device alike; on the CPU
    rows are converted, checked and written in one pass past the caches (csrc/rows_cpu.cpp).

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
        if not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise bad("seed", seed, "an integer in [0, 2**64)")
        self._slots = dispatch.native().Slots(capacity, seed)
        self._store: dict[str, Tensor] = {}
        for name, width in self.widths.items():
            kind = dtype if isinstance(dtype, torch.dtype) else dtype.get(name)
            if kind not in _KINDS:
                raise bad(f"dtype of {name}", kind, ", ".join(map(str, _KINDS)))
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
                self._put_on_gpu(name, rows)
            else:
                self._put_on_cpu(name, rows)
        self._slots.commit(n)  # only now: a put that failed leaves nothing behind
        self.tokens_in += n

    def _put_on_cpu(self, name: str, rows: Tensor) -> None:
        native, store = dispatch.native(), self._store[name]
        kinds = {rows.dtype, store.dtype}
        if rows.dtype not in _KINDS or (len(kinds) == 2 and torch.float16 in kinds):
            rows = rows.to(store.dtype)
        rows = rows.contiguous()
        n, width = rows.shape
        count, row = native.put_rows(
            self._slots, rows.data_ptr(), _KINDS[rows.dtype], store.data_ptr(), _KINDS[store.dtype],
            n, width, torch.get_num_threads(),
        )  # fmt: skip
        if count:
            narrowed = f" once stored as {store.dtype}" if len(kinds) == 2 else ""
            raise NonFiniteError(
                f"activations of {name}: NaN or Inf{narrowed} in {count} of {n} rows,"
                f" first at row {row} (token {self.tokens_in + row} of the run)"
            )

    def _put_on_gpu(self, name: str, rows: Tensor) -> None:
        # A sum is finite only if all its terms are, and reads each value once.
        self._bad[name] += (~torch.isfinite(rows.sum(1, dtype=torch.float32))).sum()
        store = self._store[name]
        store.index_copy_(0, self._sent(self._slots.offer(len(rows))), rows.to(store.dtype))

    def _sent(self, slots: Any) -> Tensor:
        return devices.sent(torch.from_numpy(slots), self.device)

    def _rows(self, slots: Any, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The rows in some slots, in `out` or in new tensors."""
        batch = dict(out) if out is not None else {}
        for name, store in self._store.items():
            if out is None:
                batch[name] = store.new_empty(len(slots), store.shape[1])
            if self.device.type == "cuda":
                torch.index_select(store, 0, self._sent(slots), out=batch[name])
                continue
            dispatch.native().take_rows(
                store.data_ptr(), slots.ctypes.data, len(slots), store[0].nbytes,
                batch[name].data_ptr(), torch.get_num_threads(),
            )  # fmt: skip
        return batch

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

    def take(self, n: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """n tokens at random: {hook point: [n, d]}, contiguous, in the storage dtype.

        Parameters
        ----------
        n : int
        out : an earlier batch of n tokens, or None
            Written over and returned. On the CPU this saves the system handing out new memory, which
            costs as much as the copy; on a GPU torch keeps memory at hand, and None is as fast.

        Raises
        ------
        InputError
            When n is not in [1, len(self)], or `out` is not like a batch of n tokens.
        """
        size = len(self)
        if not 1 <= n <= size:
            raise bad("n", n, f"an integer in [1, len={size}]")
        for name, store in self._store.items() if out is not None else ():
            given = out.get(name) if out is not None else None
            shape = (n, self.widths[name])
            if (
                given is None
                or (tuple(given.shape), given.dtype, given.device)
                != (shape, store.dtype, store.device)
                or not given.is_contiguous()
            ):
                raise bad("out", name, f"a contiguous {store.dtype} tensor {list(shape)} for it")
        batch = self._rows(self._slots.take(n), out)
        self.tokens_out += n
        return batch

    def peek(self, n: int) -> dict[str, Tensor]:
        """The first min(n, len) stored tokens, without taking them: a sample to measure on."""
        return self._rows(self._slots.occupied(n))

    def state_dict(self) -> dict[str, Any]:
        """{"tensors": {name: Tensor}, "meta": JSON-able}: everything, bit for bit."""
        return {
            # On the host: a second pool would not fit a GPU.
            "tensors": self._held(),
            "meta": {
                "tokens_in": self.tokens_in,
                "tokens_out": self.tokens_out,
                "capacity": self.capacity,
                "random": list(self._slots.random),
            },
        }

    def _held(self) -> dict[str, Tensor]:
        """All rows, in the order that draws depend on, on the host."""
        slots = self._slots.occupied(len(self))
        if self.device.type == "cuda":  # a hook point at a time
            places = self._sent(slots)
            return {name: store.index_select(0, places).cpu() for name, store in self._store.items()}
        return self._rows(slots)

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
        self._slots.restore(len(self), meta["random"])

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
