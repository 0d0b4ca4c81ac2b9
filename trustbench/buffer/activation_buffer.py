"""ActivationBuffer: activations in, well-mixed batches out, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from trustbench.buffer.native_pool import KINDS, NativePool
from trustbench.buffer.producer import Piece, Producer
from trustbench.buffer.spill import Spill
from trustbench.buffer.torch_pool import TorchPool
from trustbench.errors import InputError, NonFiniteError, bad
from trustbench.ops import dispatch


class ActivationBuffer:
    """A pool of activations of several hook points, taken from at random without replacement.

    `put` writes tokens into free slots; `take` draws distinct occupied slots uniformly and hands out
    their rows. Nothing else moves: both cost time in the tokens they handle, not in the size of the
    pool. The algorithm is C++ (csrc/buffer/pool.h), the same on every device; rows are converted,
    checked and written in one pass (csrc/kernels/rows_cpu.cpp, csrc/cuda/cuda_backend.cu).

    The mixing this gives: every stored token is equally likely in every batch, whatever its age. With
    `capacity` C and batches of n taken from a full pool, a token waits a geometric number of batches,
    C / n on average, so the tokens of one document are spread over about C / n batches, and a batch
    holds tokens of about C / (tokens a document) documents. It is a full shuffle when C is the whole
    data set.

    With `spill` the buffer holds more than the pool: tokens that find no room push a segment, a
    random draw from the pool, into host memory, then into files; as batches are taken, segments drawn
    at random come back. Everything stored keeps circulating, so a token waits (all tokens held) / n
    batches on average. Files are written and read beside the work, with checksums; whoever is faster
    than the disk waits for it.

    Guarantees: every token is handed out exactly once; the order depends on the seed and the sizes
    of puts and takes, never on timing; memory is `nbytes`, fixed when the buffer is made, and files
    stay within `spill.disk_bytes`; `state_dict` resumes bit for bit. Processes that share a data set
    have a buffer each, with a directory and a share of the data of their own (see CacheSource).

    Parameters
    ----------
    widths : mapping of hook point name to d
    capacity : int
        Tokens the pool holds.
    dtype : torch.dtype, or a mapping of hook point name to torch.dtype
        Storage: fp32, bf16, fp16, or torch.float8_e4m3fn for MXFP8: E4M3 numbers with a power of two
        for every 32 of them (OCP Microscaling Formats 1.0, 2023); about 1.03 bytes a number, each
        within 1/16 of itself, or 2^-17 of the largest of its 32. It is handed out as bf16, exactly.
    seed : int
    device : torch.device
        Where the pool lies, and what `put` takes and `take` returns.
    one_order : bool
        True: row i of a batch is one token at every hook point. False: every hook point is shuffled
        on its own.
    spill : Spill
        Bounds of the tiers below the pool.

    Examples
    --------
    >>> with tb.ActivationBuffer({"layer 3": 16}, capacity=1024) as buffer:
    ...     buffer.put({"layer 3": torch.randn(600, 16)})
    ...     batch = buffer.take(256)
    ...     batch["layer 3"].shape, len(buffer)
    (torch.Size([256, 16]), 344)
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        capacity: int,
        *,
        dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
        seed: int = 0,
        device: torch.device | str = "cpu",
        one_order: bool = True,
        spill: Spill = Spill(),  # noqa: B008  it is immutable
    ) -> None:
        if not widths:
            raise bad("widths", dict(widths), "at least one hook point")
        if capacity < 1:
            raise bad("capacity", capacity, "an integer >= 1")
        if not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise bad("seed", seed, "an integer in [0, 2**64)")
        self.widths, self.capacity, self.spill = dict(widths), capacity, spill
        kinds: dict[str, torch.dtype] = {}
        for name in widths:
            kind = dtype if isinstance(dtype, torch.dtype) else dtype.get(name)
            if kind not in KINDS:
                raise bad(f"dtype of {name}", kind, ", ".join(map(str, KINDS)))
            kinds[name] = kind
        self.device = torch.device(device)
        cuda = dispatch.cuda_native() if self.device.type == "cuda" else None
        self._pool: NativePool | TorchPool
        if self.device.type == "cuda" and cuda is None:
            if spill or not one_order or torch.float8_e4m3fn in kinds.values():
                raise NotImplementedError(
                    "ActivationBuffer: on a CUDA device tiers, separate orders and MXFP8 need"
                    " trustbench._cuda, which is built where nvcc is found"
                )
            self._pool = TorchPool(widths, kinds, capacity, seed, self.device)
        else:
            module = cuda or dispatch.native()
            self._pool = NativePool(
                module, widths, kinds, capacity, seed, self.device, one_order, spill
            )
        self._producer: Producer | None = None

    def __del__(self) -> None:
        # Before the rows' memory: copies from and to it may be under way.
        if pool := self.__dict__.get("_pool"):
            pool.close()

    @property
    def tokens_in(self) -> int:
        """Tokens put over the buffer's life."""
        return self._pool.tokens_in

    @property
    def tokens_out(self) -> int:
        """Tokens taken over the buffer's life."""
        return self._pool.tokens_out

    def __len__(self) -> int:
        """Tokens stored now."""
        return self.tokens_in - self.tokens_out

    @property
    def limit(self) -> int:
        """Tokens that pool and tiers hold at most."""
        return self._pool.limit

    @property
    def most(self) -> int:
        """Tokens of one put or take at most: the pool, less a segment where there are tiers."""
        return self._pool.most

    @property
    def space(self) -> int:
        """Tokens that can still be put."""
        return self.limit - len(self)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, of the pool (which uses them all) and of the tiers (which may)."""
        return sum(rows.nbytes for rows in self._pool.rows.values()) + self._pool.tier_bytes

    def views(self) -> dict[str, Tensor]:
        """The pool's memory as it is, without a copy: {hook point: [capacity, d] as stored}.

        Rows are where `put` left them (MXFP8 as bytes), and change with the next put. A view keeps
        the memory alive, also when the buffer is closed.
        """
        return dict(self._pool.rows)

    def put(self, acts: Mapping[str, Any]) -> None:
        """Store n tokens: {hook point: [n, d]}, all hook points, rows in the same order.

        Tensors, or anything with `__dlpack__` or `__cuda_array_interface__` (numpy, CuPy, JAX), which
        is read without a copy. On a GPU they are read on the current stream.

        Raises
        ------
        InputError
            For missing or unknown hook points, a wrong shape or device, or more tokens than `space`
            or `most`.
        NonFiniteError
            For NaN or Inf, with hook point and row. Nothing is stored then. On a GPU, which is not
            waited for here, `check_finite` raises it later.
        DataError
            When a segment could not be written to the disk. Nothing is lost, and `state_dict` still
            holds everything; only more room on the disk helps.
        """
        if acts.keys() != self.widths.keys():
            raise bad("acts", sorted(acts), f"the hook points {sorted(self.widths)}")
        rows = {name: _tensor(name, given) for name, given in acts.items()}
        n = len(next(iter(rows.values())))
        for name, tensor in rows.items():
            if tuple(tensor.shape) != (n, self.widths[name]):
                raise bad(f"acts[{name!r}].shape", list(tensor.shape), f"[{n}, {self.widths[name]}]")
            if not tensor.is_floating_point():
                raise bad(f"acts[{name!r}].dtype", tensor.dtype, "a floating-point dtype")
            if tensor.device.type != self.device.type:
                raise bad(f"acts[{name!r}].device", str(tensor.device), str(self.device))
        if n > min(self.space, self.most):
            raise bad("acts", f"{n} tokens", f"at most space={self.space} and most={self.most}")
        before = self.tokens_in
        for (count, row), name in zip(self._pool.put(rows), self.widths, strict=True):
            if count:
                stored = self._pool.out_dtype(name)
                narrowed = f" once stored as {stored}" if rows[name].dtype != stored else ""
                raise NonFiniteError(
                    f"activations of {name}: NaN or Inf{narrowed} in {count} of {n} rows,"
                    f" first at row {row} (token {before + row} of the run)"
                )

    def check_finite(self) -> None:
        """NonFiniteError when rows put since the last check held NaN or Inf (on a GPU; waits for it).

        They are in the pool: training skips a batch that holds one of them (see TritonStep).
        """
        for name, count in zip(self.widths, self._pool.bad_rows(), strict=True):
            if count:
                raise NonFiniteError(
                    f"activations of {name}: NaN or Inf in {count} rows, among the {self.tokens_in}"
                    " tokens so far"
                )

    def take(self, n: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """n tokens at random: {hook point: [n, d]}, contiguous, in the storage dtype (MXFP8: bf16).

        The batch is the caller's: ordinary tensors, which outlive the buffer and which DLPack and
        numpy read without a copy. On a GPU it is written on the current stream.

        Parameters
        ----------
        n : int
        out : an earlier batch of n tokens, or None
            Written over and returned. On the CPU this saves the system handing out new memory, which
            costs as much as the copy; on a GPU torch keeps memory at hand, and None is as fast.

        Raises
        ------
        InputError
            When n is not in [1, min(len(self), most)], or `out` is not like a batch of n tokens.
        DataError
            When a segment's file is missing, truncated or corrupt, naming it. Its tokens are never
            handed out.
        """
        self._pull()
        if not 1 <= n <= min(len(self), self.most):
            raise bad("n", n, f"an integer in [1, min(len={len(self)}, most={self.most})]")
        batch = dict(out) if out is not None else self._new(n)
        for name, width in self.widths.items() if out is not None else ():
            given, kind = batch.get(name), self._pool.out_dtype(name)
            if (
                given is None
                or (tuple(given.shape), given.dtype, given.device.type)
                != ((n, width), kind, self.device.type)
                or not given.is_contiguous()
            ):
                raise bad("out", name, f"a contiguous {kind} tensor {[n, width]} for it")
        self._pool.take(n, batch)
        return batch

    def peek(self, n: int) -> dict[str, Tensor]:
        """The pool's first n tokens (or all), without taking them: a sample to measure on."""
        batch = self._new(min(n, self._pool.pooled))
        self._pool.peek(min(n, self._pool.pooled), batch)
        return batch

    def _new(self, n: int) -> dict[str, Tensor]:
        return {
            name: torch.empty(n, width, dtype=self._pool.out_dtype(name), device=self.device)
            for name, width in self.widths.items()
        }

    @contextmanager
    def fed_by(self, pieces: Iterable[Piece]) -> Iterator[Self]:
        """Inside the block a thread makes what is put: `take` and `batches` put what fits, in order.

        The thread is at most one piece ahead. The order of tokens is that of filling by hand before
        every take, whatever the timing. What `pieces` raises, the next take raises. What was made
        but does not fit yet is not in `state_dict`: resume a source at `tokens_in`.

        Parameters
        ----------
        pieces : iterable of {hook point: [n, d]}
            As for `put`. None may be larger than `most`.
        """
        self._producer = Producer(pieces)
        try:
            yield self
        finally:
            producer, self._producer = self._producer, None
            producer.close()

    def _pull(self) -> None:
        """Put what the producer has, as long as it fits."""
        while self._producer and (piece := self._producer.peek()) is not None:
            n = len(next(iter(piece.values())))
            if n > self.space and len(self):
                return  # it will fit later
            self.put(piece)
            self._producer.drop()

    def batches(self, n: int) -> Iterator[dict[str, Tensor]]:
        """Batches of n until the buffer, and what feeds it, is empty; the last may be smaller."""
        while True:
            self._pull()
            if not len(self):
                return
            yield self.take(min(n, len(self)))

    def state_dict(self) -> dict[str, Any]:
        """{"tensors": {name: Tensor}, "meta": JSON-able}: everything, bit for bit.

        The tensors are made when they are asked for, one hook point's rows on the host at a time:
        read them before the buffer changes. Tokens in files stay there: the files that this state
        names are kept until `saved` has been called for a later one.
        """
        meta = self._pool.state()
        meta |= {"capacity": self.capacity, "limit": self.limit}
        return {"tensors": _Held(self._pool, list(self.widths), meta), "meta": meta}

    def saved(self) -> None:
        """The last `state_dict` is safe: files that only earlier ones needed may go."""
        self._pool.saved()

    def forget(self) -> None:
        """No saved state will be restored: `close` leaves no files."""
        self._pool.forget()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict` of a buffer made with the same arguments, into a new one.

        Raises
        ------
        InputError
            When it belongs to another kind of buffer.
        DataError
            When a file of it is missing or truncated.
        """
        meta, tensors = state["meta"], state["tensors"]
        mine = {"capacity": self.capacity, "limit": self.limit}
        if tensors.keys() != self.widths.keys() or any(meta[k] != v for k, v in mine.items()):
            raise InputError("buffer state: it belongs to other hook points or another capacity")
        try:
            self._pool.restore(meta, tensors)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"buffer state: {error}") from None

    def close(self) -> None:
        """Free the memory, and the files that no saved state needs; what it still holds is lost."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Held(Mapping[str, Tensor]):
    """The rows of a state, copied when they are asked for."""

    def __init__(
        self, pool: NativePool | TorchPool, names: list[str], meta: Mapping[str, Any]
    ) -> None:
        self._pool, self._names, self._meta = pool, names, meta

    def __getitem__(self, name: str) -> Tensor:
        return self._pool.held(name, self._meta)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _tensor(name: str, given: Any) -> Tensor:
    """A tensor over what was given, without a copy."""
    if isinstance(given, Tensor):
        return given
    if hasattr(given, "__cuda_array_interface__"):
        return torch.as_tensor(given, device="cuda")
    if hasattr(given, "__dlpack__"):
        return torch.from_dlpack(given)
    raise bad(f"acts[{name!r}]", type(given).__name__, "a tensor, or an array that DLPack can read")
