"""Processes that work together, started by torchrun: the few things they say to each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trustbench import files
from trustbench.errors import TrustbenchError


class TeamError(TrustbenchError):
    """What went wrong on some rank, told on all of them."""


class Team:
    """The processes of one run. A process of its own is a team of one, which says nothing.

    Every method is called by all ranks, in the same order.

    Parameters
    ----------
    rank, size : int
        Which of how many.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._mine = False  # whether this object started torch.distributed

    @classmethod
    def of_environment(cls, device: torch.device) -> Team:
        """The team that torchrun's variables describe; one process without them.

        Host tensors go through gloo; those of CUDA devices through NCCL. A process group that is
        there already is used as it is.
        """
        mine = not dist.is_initialized()
        if mine and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            # Its functions keep the group that is there when they are first imported (transformers
            # does), and with it gloo's threads, which crash an interpreter that ends before them.
            import torch.distributed.nn  # noqa: F401

            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        if not dist.is_initialized():
            return cls()
        team = cls(dist.get_rank(), dist.get_world_size())
        team._mine = mine
        return team

    def leave(self) -> None:
        """End what `of_environment` started."""
        if self._mine:
            dist.destroy_process_group()

    def share(self, count: int, rank: int | None = None) -> slice:
        """Which of `count` things are a rank's (None: this one's): in a row, as many for each."""
        rank = self.rank if rank is None else rank
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    # ---------------------------------------------------------------- tensors

    def fill(self, whole: Tensor, ends: Sequence[int]) -> Tensor:
        """Rank r has written whole[ends[r - 1] : ends[r]]; afterwards all have all of it.

        `whole` is contiguous, of any dtype, and is returned.
        """
        if self.size > 1:
            starts = [0, *ends[:-1]]
            # As bytes, which every back end takes.
            flat = whole.view(len(whole), -1).view(torch.uint8) if whole.numel() else whole
            work = [
                dist.broadcast(flat[start:end], source, async_op=True)
                for source, (start, end) in enumerate(zip(starts, ends, strict=True))
                if end > start and whole.numel()
            ]
            for one in work:
                one.wait()
        return whole

    def joined(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """All ranks' rows [n, ...], counts[r] of rank r, one after the other."""
        if self.size == 1:
            return rows
        ends = torch.tensor(counts).cumsum(0).tolist()
        whole = rows.new_empty(ends[-1], *rows.shape[1:])
        whole[ends[self.rank] - counts[self.rank] : ends[self.rank]] = rows
        return self.fill(whole, ends)

    def exchanged(self, parcels: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """parcels[r] is for rank r; what came from every rank: bytes, sizes[r] from rank r."""
        flat = torch.cat(list(parcels))
        got = flat.new_empty(sum(sizes))
        dist.all_to_all_single(got, flat, list(sizes), [len(parcel) for parcel in parcels])
        return list(got.split(list(sizes)))

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place: the same bits on each."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    # ---------------------------------------------------------------- small things, and errors

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set on some rank."""
        if self.size == 1:
            return flags
        both = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        return tuple(map(bool, both.tolist()))

    def objects(self, mine: Any) -> list[Any]:
        """What every rank has, by rank."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine)
        return found

    def agree(self, error: BaseException | None) -> None:
        """Raise on every rank when there is an error on one: its own where that one is, or its like.

        Errors that trustbench words are raised as they are on all ranks: whoever catches them does
        the same everywhere. Others become a TeamError on the ranks that have none.
        """
        if not self.any(error is not None)[0]:
            return
        told = error if isinstance(error, TrustbenchError) else repr(error) if error else None
        for rank, other in enumerate(self.objects(told)):
            if isinstance(other, TrustbenchError):
                raise error or other
            if other is not None:
                raise error or TeamError(f"rank {rank} stopped: {other}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error inside the block on one rank ends it on all of them."""
        if self.size == 1:
            yield
            return
        error: BaseException | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        self.agree(error)

    @contextmanager
    def directory(self, target: Path) -> Iterator[Path]:
        """`files.atomic_dir(target)`, written by all ranks: it takes its place when all are done."""
        with ExitStack() as stack:
            with self.together():
                made = stack.enter_context(files.atomic_dir(target)) if self.rank == 0 else None
            path = Path(self.objects(made)[0])
            with self.together():
                yield path
            with self.together():
                stack.close()
