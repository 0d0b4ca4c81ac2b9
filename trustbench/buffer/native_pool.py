"""The buffer's core in C++ (csrc/buffer/pool.h) over tensors, on the CPU and on CUDA devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from trustbench.buffer.spill import Spill
from trustbench.errors import DataError, InputError, bad

# RowKind of csrc/kernels.h. torch's dtype stands for MXFP8: e4m3 numbers with a scale for every 32.
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float8_e4m3fn: 3}


_COUNTS = {
    "tokens_in", "tokens_out", "pooled", "limit", "most", "segment_tokens", "tier_bytes"
}  # fmt: skip


class NativePool:
    """A pool of rows of several hook points, with tiers below it.

    Parameters
    ----------
    module : trustbench._C or trustbench._cuda
        Whose back end moves the rows.
    """

    def __init__(
        self,
        module: ModuleType,
        widths: Mapping[str, int],
        kinds: Mapping[str, torch.dtype],
        capacity: int,
        seed: int,
        device: torch.device,
        one_order: bool,
        spill: Spill,
    ) -> None:
        self._open: Any = None
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._module, self._device = module, device
        self._kinds, self._widths = dict(kinds), dict(widths)
        self.rows: dict[str, Tensor] = {}
        for name, width in widths.items():
            if (kind := kinds[name]) == torch.float8_e4m3fn:
                kind, width = torch.uint8, module.row_bytes(KINDS[kind], width)
            self.rows[name] = rows = torch.empty(capacity, width, dtype=kind, device=device)
            if device.type == "cpu":
                module.prefer_huge_pages(rows.data_ptr(), rows.nbytes)
        spill.prepare()
        hooks = [(widths[n], KINDS[kinds[n]], rows.data_ptr()) for n, rows in self.rows.items()]
        host_bytes = spill.host_bytes
        token = sum(module.row_bytes(kind, d) for d, kind, _ in hooks)
        if spill.disk_bytes and not host_bytes:
            host_bytes = module.moving_bytes(token, capacity)
        with told(module):
            try:
                self._open = module.Pool(
                    hooks, capacity, seed, one_order=one_order, host_bytes=host_bytes,
                    disk_bytes=spill.disk_bytes, directory=spill.directory, device=device.index or 0,
                )  # fmt: skip
            except ValueError as error:
                raise bad("spill", spill, str(error)) from None

    @property
    def _pool(self) -> Any:
        if self._open is None:
            raise InputError("buffer: it is closed")
        return self._open

    def __getattr__(self, name: str) -> Any:
        # Counts: tokens_in, tokens_out, pooled, limit, most, segment_tokens, tier_bytes.
        if name not in _COUNTS:
            raise AttributeError(name)
        return getattr(self._pool, name)

    def bad_rows(self) -> list[int]:
        """Rows of each hook point that were not finite since the last call. Waits for a GPU."""
        return self._pool.bad_rows()

    def saved(self) -> None:
        """The last `state` is safe."""
        self._pool.saved()

    def out_dtype(self, name: str) -> torch.dtype:
        """Rows are handed out as stored; MXFP8 as bf16, which holds all its numbers exactly."""
        kind = self._kinds[name]
        return torch.bfloat16 if kind == torch.float8_e4m3fn else kind

    def _stream(self) -> int:
        return torch.cuda.current_stream(self._device).cuda_stream if self._on_gpu else 0

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    def put(self, acts: Mapping[str, Tensor]) -> list[tuple[int, int]]:
        """(rows that are not finite, the first of them) of every hook point; see Pool::put."""
        ready = []
        for name in self.rows:
            rows, kind = acts[name], self._kinds[name]
            if rows.dtype != kind and {rows.dtype, kind} - {
                torch.float32, torch.bfloat16, torch.float8_e4m3fn
            }:  # fmt: skip
                rows = rows.to(torch.float32 if kind == torch.float8_e4m3fn else kind)
            rows = rows.contiguous()
            if self._on_gpu:
                rows.record_stream(torch.cuda.current_stream(self._device))
            ready.append(rows)
        given = [(rows.data_ptr(), KINDS[rows.dtype]) for rows in ready]
        with told(self._module):
            return self._pool.put(given, len(ready[0]), self._stream(), torch.get_num_threads())

    def take(self, n: int, out: Mapping[str, Tensor]) -> None:
        """n tokens at random, into tensors of `out_dtype`."""
        addresses = [out[name].data_ptr() for name in self.rows]
        with told(self._module):
            self._pool.take(n, addresses, self._stream(), torch.get_num_threads())

    def peek(self, n: int, out: Mapping[str, Tensor]) -> None:
        """The pool's first n tokens; they stay."""
        addresses = [out[name].data_ptr() for name in self.rows]
        self._pool.peek(n, addresses, self._stream(), torch.get_num_threads())

    def forget(self) -> None:
        """No saved state will be restored."""
        self._pool.forget()

    def state(self) -> dict[str, Any]:
        """All but the rows, ready for JSON."""
        if self._on_gpu:
            torch.cuda.synchronize(self._device)  # whatever streams puts and takes were on
        with told(self._module):
            return self._pool.state()

    def held(self, name: str, state: Mapping[str, Any]) -> Tensor:
        """Stored rows of one hook point that are in memory: the pool's, then the host tier's."""
        i = list(self.rows).index(name)
        slots = torch.from_numpy(self._pool.occupied(i)).to(self._device)
        rows, each = self.rows[name], self._pool.segment_tokens
        count = _in_memory(state)
        held = rows.new_empty(len(slots) + count * each, rows.shape[1], device="cpu")
        if self._on_gpu:
            held[: len(slots)] = rows.index_select(0, slots)
        else:
            torch.index_select(rows, 0, slots, out=held[: len(slots)])
        for j in range(count):
            self._pool.segment(j, i, held[len(slots) + j * each :].data_ptr(), False)
        return held

    def restore(self, state: Mapping[str, Any], held: Mapping[str, Tensor]) -> None:
        """What `state` and `held` said, into a pool that is new."""
        with told(self._module):
            self._pool.restore(dict(state))
            pooled, each, count = self._pool.pooled, self._pool.segment_tokens, _in_memory(state)
            for i, (name, rows) in enumerate(self.rows.items()):
                saved = held[name]
                shape = (pooled + count * each, rows.shape[1])
                if tuple(saved.shape) != shape or saved.dtype != rows.dtype:
                    raise bad(f"state of {name}", list(saved.shape), f"{rows.dtype} {list(shape)}")
                saved = saved.contiguous()
                rows[:pooled] = saved[:pooled]
                for j in range(count):
                    self._pool.segment(j, i, saved[pooled + j * each :].data_ptr(), True)
            self._pool.restored()
        if self._on_gpu:
            torch.cuda.synchronize(self._device)  # the rows are there, whichever stream comes next

    def close(self) -> None:
        """Let go of the tiers, then of the memory; tensors that were handed out keep theirs."""
        self._open = None
        self.rows = {}


def _in_memory(state: Mapping[str, Any]) -> int:
    return sum(not on_disk for _, _, on_disk in state["segments"])


@contextmanager
def told(module: ModuleType) -> Iterator[None]:
    """What goes wrong with the tiers' files, as a DataError."""
    try:
        yield
    except module.SpillError as error:
        raise DataError(f"spill: {error}") from None
