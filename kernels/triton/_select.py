"""The k largest entries of every row, exactly: a search for the k-th value, then a compaction.

The search halves the range of the integers that `ordered` makes of values. It starts from the row's
largest value and the value half as large, between which the k-th nearly always lies, and ends as soon
as exactly k entries are left: about ten counts. Equal values at the end are cut by feature.
"""

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._order import LOWEST, from_ordered, ordered, split, store_pair

_LOWEST = tl.constexpr(LOWEST)
_HELD = 8192  # entries of a row that one program holds; a longer row is read for every count
SORTED = 1024  # the longest row that sort_kernel sorts


@triton.jit
def _entries(source, at, C, BITS: tl.constexpr, M: tl.constexpr, BUCKET: tl.constexpr):
    """(value, feature) of entries `at` of a row: of candidates (BITS > 0) or of pre-activations.

    A value is `ordered`, shifted right by BITS. Candidates lie as [tile, M, 8]; see encode_topk.
    """
    if BITS > 0:
        key = tl.load(source + at, mask=at < C, other=_LOWEST)
        group = BUCKET - 1 - (key & (BUCKET - 1))
        feature = (at // (8 * M)) * (8 * BUCKET) + group * 8 + at % 8
        return key >> BITS, feature
    value = ordered(tl.load(source + at, mask=at < C, other=0.0))
    return tl.where(at < C, value, _LOWEST), at


@triton.jit
def _count(
    source, C, value, feature, bound, cut, BY_FEATURE: tl.constexpr, BLOCK: tl.constexpr,
    WHOLE: tl.constexpr, BITS: tl.constexpr, M: tl.constexpr, BUCKET: tl.constexpr,
):  # fmt: skip
    """How many entries have a value >= bound; or, BY_FEATURE, value == bound and feature <= cut."""
    if WHOLE:
        hit = (value == bound) & (feature <= cut) if BY_FEATURE else value >= bound
        return tl.sum(hit.to(tl.int32), axis=0)
    total = 0
    for start in range(0, C, BLOCK):
        v, f = _entries(source, start + tl.arange(0, BLOCK), C, BITS, M, BUCKET)
        hit = (v == bound) & (f <= cut) if BY_FEATURE else v >= bound
        total += tl.sum(hit.to(tl.int32), axis=0)
    return total


@triton.jit(do_not_specialize=["first", "T", "F", "k"])
def select_kernel(
    source, dropped, rows, count, pairs, flags, first, C, T, F, k,
    BLOCK: tl.constexpr, WHOLE: tl.constexpr, LISTED: tl.constexpr,
    BITS: tl.constexpr, M: tl.constexpr, BUCKET: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One program a row: its k largest as `store_pair` writes them, in no order.

    LISTED: program p serves row rows[first + p] (if first + p < count) from source row p. Otherwise
    it serves row first + p from source row p. BITS > 0: flags[row] tells that an entry which the
    candidates lack (one of dropped [N, T]) might belong to the k largest.
    """
    p = tl.program_id(0)
    row = first + p
    if LISTED:
        if row >= tl.load(count):
            return
        row = tl.load(rows + row)
    source += p.to(tl.int64) * C
    pairs += row.to(tl.int64) * k

    value, feature = _entries(source, tl.arange(0, BLOCK), C, BITS, M, BUCKET)
    largest = tl.max(value, axis=0)
    if not WHOLE:
        for start in range(BLOCK, C, BLOCK):
            more, _ = _entries(source, start + tl.arange(0, BLOCK), C, BITS, M, BUCKET)
            largest = tl.maximum(largest, tl.max(more, axis=0))

    # count(>= high) < k <= count(>= low); int64, as the range may not fit 32 bits.
    high = largest.to(tl.int64) + 1
    low = tl.full((), _LOWEST >> BITS, tl.int64)
    guess = tl.maximum(largest.to(tl.int64) - (1 << (23 - BITS)), low)
    found = _count(
        source, C, value, feature, guess.to(tl.int32), 0, False, BLOCK, WHOLE, BITS, M, BUCKET
    )
    if found >= k:
        low = guess
    else:
        high = guess
    while (found != k) & (high - low > 1):
        middle = low + (high - low) // 2
        found = _count(
            source, C, value, feature, middle.to(tl.int32), 0, False, BLOCK, WHOLE, BITS, M, BUCKET
        )
        if found >= k:
            low = middle
        else:
            high = middle
    bound = low.to(tl.int32)

    # More than k: of those equal to the bound, the lowest features. cut: the last of them.
    cut = F
    if found != k:
        found = _count(source, C, value, feature, bound, 0, False, BLOCK, WHOLE, BITS, M, BUCKET)
    if found > k:
        equal = _count(source, C, value, feature, bound, F, True, BLOCK, WHOLE, BITS, M, BUCKET)
        wanted = k - (found - equal)
        least = -1
        while cut - least > 1:
            middle = least + (cut - least) // 2
            if (
                _count(source, C, value, feature, bound, middle, True, BLOCK, WHOLE, BITS, M, BUCKET)
                >= wanted
            ):
                cut = middle
            else:
                least = middle

    if BITS > 0:
        smallest = tl.min(tl.where(value >= bound, value, largest), axis=0)
        lost = tl.full((), _LOWEST >> BITS, tl.int32)
        for start in range(0, T, BLOCK_T):
            at = start + tl.arange(0, BLOCK_T)
            keys = tl.load(dropped + p.to(tl.int64) * T + at, mask=at < T, other=_LOWEST)
            lost = tl.maximum(lost, tl.max(keys >> BITS, axis=0))
        if not WHOLE:
            smallest = bound  # at most the k-th: a row too many may be done again, none too few
        tl.store(flags + row, (lost >= smallest).to(tl.int32))

    base = 0
    for start in range(0, C, BLOCK):
        if not WHOLE:
            value, feature = _entries(source, start + tl.arange(0, BLOCK), C, BITS, M, BUCKET)
        chosen = (value > bound) | ((value == bound) & (feature <= cut))
        place = base + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
        store_pair(pairs, place, value << BITS, feature, chosen & (place < k))
        base += tl.sum(chosen.to(tl.int32), axis=0)


@triton.jit
def list_rows_kernel(flags, ends, rows, N, BLOCK: tl.constexpr):
    """rows: the places where flags [N] is 1, ascending; ends = cumsum(flags)."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    flagged = tl.load(flags + n, mask=n < N, other=0) != 0
    tl.store(rows + tl.load(ends + n, mask=flagged, other=1) - 1, n, mask=flagged)


@triton.jit(do_not_specialize=["N", "k"])
def sort_kernel(
    pairs, values, indices, N, k, ROWS: tl.constexpr, KP: tl.constexpr, SORT: tl.constexpr
):
    """Unpack pairs [N, k] into ReLU'd values and features, largest first."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1) * KP + tl.arange(0, KP)
    inside = (row < N)[:, None] & (at < k)[None, :]
    place = row[:, None].to(tl.int64) * k + at[None, :]
    pair = tl.load(pairs + place, mask=inside, other=-(2**63))
    if SORT:
        pair = tl.sort(pair, dim=1, descending=True)
    order, feature = split(pair)
    value = from_ordered(order)
    tl.store(values + place, tl.where(value <= 0, 0.0, value), mask=inside)
    tl.store(indices + place, feature, mask=inside)


def select(source, k, F, pairs, *, first=0, listed=None, dropped=None, flags=None, M=0, BUCKET=1):
    """Launch select_kernel over the rows of `source`: candidates if M > 0, else pre-activations.

    `listed` = (rows, count): source row p belongs to row rows[first + p].
    """
    R, C = source.shape
    BLOCK = min(triton.next_power_of_2(max(C, 2)), _HELD)
    T = dropped.shape[1] if M else 1
    rows, count = listed or (None, None)
    select_kernel[(R,)](
        source, dropped, rows, count, pairs, flags, first, C, T, F, k,
        BLOCK=BLOCK, WHOLE=C <= BLOCK, LISTED=listed is not None, BITS=BUCKET.bit_length() - 1,
        M=max(M, 1), BUCKET=BUCKET, BLOCK_T=min(triton.next_power_of_2(T), 1024),
        num_warps=_select_warps(BLOCK),
    )  # fmt: skip


def _select_warps(block: int) -> int:
    """16 entries a thread."""
    return max(block // 512, 1)


def list_rows(flags):
    """(rows, count): where flags [N] is 1, without asking the host."""
    N = len(flags)
    ends = flags.cumsum(0, dtype=torch.int32)
    rows = torch.empty_like(flags)
    list_rows_kernel[(triton.cdiv(N, 1024),)](flags, ends, rows, N, BLOCK=1024)
    return rows, ends[-1:]


def unpack(pairs):
    """(values fp32, indices int32) [N, k], largest first, from pairs in any order."""
    N, k = pairs.shape
    values = torch.empty(N, k, dtype=torch.float32, device=pairs.device)
    indices = torch.empty(N, k, dtype=torch.int32, device=pairs.device)
    if k > SORTED:  # rare and long: the library's radix sort
        pairs = pairs.sort(dim=1, descending=True).values
    KP = min(triton.next_power_of_2(k), SORTED)
    ROWS = max(1, 256 // KP)
    sort_kernel[(triton.cdiv(N, ROWS), triton.cdiv(k, KP))](
        pairs,
        values,
        indices,
        N,
        k,
        ROWS=ROWS,
        KP=KP,
        SORT=k <= SORTED,
        num_warps=4 if KP < 512 else 8,
    )
    return values, indices


_LISTS = {
    "source": "*fp32",
    "dropped": None,
    "rows": "*i32",
    "count": "*i32",
    "pairs": "*i64",
    "flags": None,
}
_CANDIDATES = {
    "source": "*i32",
    "dropped": "*i32",
    "rows": None,
    "count": None,
    "pairs": "*i64",
    "flags": "*i32",
}
_SIZES = dict.fromkeys(("first", "C", "T", "F", "k"), "i32")

BUILDS = (
    *(
        Build(
            f"candidates, {BLOCK} in registers",
            select_kernel,
            _CANDIDATES | _SIZES,
            {"BLOCK": BLOCK, "WHOLE": True, "LISTED": False, "BITS": 4, "M": 2, "BUCKET": 16}
            | {"BLOCK_T": 256},
            warps=_select_warps(BLOCK),
            # A few spilled registers at 8192 (Triton 3.6) cost less than reading the row again for
            # each of about ten counts.
            limits=Limits(
                registers=172, spills={80: 70, 90: 16, 100: 10} if BLOCK == _HELD else {100: 4}
            ),
        )
        for BLOCK in (4096, _HELD)
    ),
    Build(
        "candidates, too many for that",
        select_kernel,
        _CANDIDATES | _SIZES,
        {"BLOCK": _HELD, "WHOLE": False, "LISTED": False, "BITS": 4, "M": 2, "BUCKET": 16}
        | {"BLOCK_T": 1024},
        warps=_select_warps(_HELD),
        limits=Limits(registers=172),
    ),
    Build(
        "pre-activations of any F, listed rows",
        select_kernel,
        _LISTS | _SIZES,
        {"BLOCK": _HELD, "WHOLE": False, "LISTED": True, "BITS": 0, "M": 1, "BUCKET": 1}
        | {"BLOCK_T": 1},
        warps=_select_warps(_HELD),
        limits=Limits(registers=172),
    ),
    Build(
        "rows to be done again",
        list_rows_kernel,
        {"flags": "*i32", "ends": "*i32", "rows": "*i32", "N": "i32"},
        {"BLOCK": 1024},
        warps=4,
        limits=Limits(registers=40),
    ),
    *(
        Build(
            f"k up to {KP}",
            sort_kernel,
            {"pairs": "*i64", "values": "*fp32", "indices": "*i32", "N": "i32", "k": "i32"},
            {"ROWS": max(1, 256 // KP), "KP": KP, "SORT": True},
            warps=4 if KP < 512 else 8,
            limits=Limits(registers=64),
        )
        for KP in (64, 1024)
    ),
)
