"""CSR codes from dense pre-activations: count a row's kept entries, then write them in order."""

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._order import LOWEST, ordered

_LOWEST = tl.constexpr(LOWEST)
_BLOCK = 2048


@triton.jit
def _kept(pre, threshold, state, at, F, THRESHOLD: tl.constexpr, BATCH: tl.constexpr):
    """(value, surely kept, equal to the batch's bound) of entries `at` of a row."""
    inside = at < F
    value = tl.load(pre + at, mask=inside, other=0.0)
    if BATCH:  # above the bound that the whole batch shares, and positive or NaN
        order, bound = ordered(value), tl.load(state)
        tied = tl.where(bound > 0, bound, _LOWEST)  # which no value has
        return value, inside & (order > bound), inside & (order == tied)
    floor = tl.load(threshold + at, mask=inside, other=0.0) if THRESHOLD else tl.zeros_like(value)
    keep = (value <= floor) == 0  # a NaN is kept
    return value, inside & keep, inside & (at < 0)


@triton.jit(do_not_specialize=["F"])
def count_kernel(
    pre, threshold, state, above, equal, F,
    THRESHOLD: tl.constexpr, BATCH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row: how many entries lie above the bound, and how many equal the batch's."""
    row = tl.program_id(0)
    pre += row.to(tl.int64) * F
    total, ties = 0, 0
    for start in range(0, F, BLOCK):
        _, keep, tie = _kept(pre, threshold, state, start + tl.arange(0, BLOCK), F, THRESHOLD, BATCH)
        total += tl.sum(keep.to(tl.int32), axis=0)
        ties += tl.sum(tie.to(tl.int32), axis=0)
    tl.store(above + row, total)
    if BATCH:
        tl.store(equal + row, ties)


@triton.jit(do_not_specialize=["F"])
def write_kernel(
    pre, threshold, state, quota, offsets, values, indices, F,
    THRESHOLD: tl.constexpr, BATCH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row: its kept entries, features ascending, from offsets[row] on.

    BATCH: of the entries equal to the bound, the first quota[row].
    """
    row = tl.program_id(0)
    pre += row.to(tl.int64) * F
    base = tl.load(offsets + row)
    left = tl.load(quota + row) if BATCH else 0
    for start in range(0, F, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value, keep, tie = _kept(pre, threshold, state, at, F, THRESHOLD, BATCH)
        if BATCH:
            keep = keep | (tie & (tl.cumsum(tie.to(tl.int32), axis=0) <= left))
            left -= tl.sum(tie.to(tl.int32), axis=0)
        kept = keep.to(tl.int32)
        place = base + tl.cumsum(kept, axis=0) - 1
        tl.store(values + place, value, mask=keep)
        tl.store(indices + place, at, mask=keep)
        base += tl.sum(kept, axis=0)


def count(pre, *, threshold=None, state=None):
    """(above, equal) int32 [N]: entries over the threshold (0), or over and at the bound state[0]."""
    N, F = pre.shape
    above = torch.empty(N, dtype=torch.int32, device=pre.device)
    equal = torch.empty_like(above) if state is not None else None
    if N:
        count_kernel[(N,)](
            pre, threshold, state, above, equal, F,
            THRESHOLD=threshold is not None, BATCH=state is not None, BLOCK=_block(F), num_warps=8,
        )  # fmt: skip
    return above, equal


def write(pre, kept, *, threshold=None, state=None, quota=None):
    """(values fp32, indices int32, row_offsets int64): kept [N] entries of every row.

    Asks the device how many entries there are: the sizes of the result depend on it.
    """
    N, F = pre.shape
    offsets = torch.zeros(N + 1, dtype=torch.int64, device=pre.device)
    torch.cumsum(kept, 0, out=offsets[1:])
    nnz = int(offsets[-1])
    values = torch.empty(nnz, dtype=torch.float32, device=pre.device)
    indices = torch.empty(nnz, dtype=torch.int32, device=pre.device)
    if nnz:
        write_kernel[(N,)](
            pre, threshold, state, quota, offsets, values, indices, F,
            THRESHOLD=threshold is not None, BATCH=state is not None, BLOCK=_block(F), num_warps=8,
        )  # fmt: skip
    return values, indices, offsets


def _block(F: int) -> int:
    return min(triton.next_power_of_2(max(F, 2)), _BLOCK)


def _builds(kernel, pointers: dict[str, str | None], registers: int):
    for threshold, batch in ((False, False), (True, False), (False, True)):
        given = {
            "threshold": "*fp32" if threshold else None,
            "state": "*i32" if batch else None,
            "equal": "*i32" if batch else None,
            "quota": "*i32" if batch else None,
        }
        signature = {n: given.get(n, kind) for n, kind in pointers.items()}
        name = "threshold" if threshold else "batch" if batch else "above zero"
        yield Build(
            name,
            kernel,
            signature | {"F": "i32"},
            {"THRESHOLD": threshold, "BATCH": batch, "BLOCK": _BLOCK},
            warps=8,
            limits=Limits(registers),
        )


BUILDS = (
    *_builds(
        count_kernel,
        {"pre": "*fp32", "threshold": None, "state": None, "above": "*i32", "equal": None},
        64,
    ),
    *_builds(
        write_kernel,
        {"pre": "*fp32", "threshold": None, "state": None, "quota": None, "offsets": "*i64"}
        | {"values": "*fp32", "indices": "*i32"},
        128,
    ),
)
