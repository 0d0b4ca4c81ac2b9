"""encode_batchtopk: collect a few times N k candidates of a batch, then the exact bound among them.

A sample of tokens tells from where on values are worth keeping: the matmul's epilogue keeps what is
larger, and nothing else leaves the chip. The N k-th largest of the kept values is found by counting
digits (11, 10 and 10 bits of the positive values' 31). It is the batch's own when N k were kept, or
when the sample's value was 0; otherwise the search starts again from a lower value.
"""

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton import _csr, _dense
from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._collect import MOST, collect
from trustbench.kernels.triton._order import INFINITY, NAN, from_ordered, ordered

_DIGITS = ((20, 11), (10, 10), (0, 10))  # (shift, bits), most significant first
_BLOCK = 4096
_BLOCKS = 8  # that one program counts
_SAMPLE = 256  # tokens
_MARGIN = 2  # times as many candidates as are wanted, by the sample
_BOUND, _LEFT, _EQUAL = 0, 1, 2  # in the state of a search

_INFINITY = tl.constexpr(INFINITY)


@triton.jit(do_not_specialize=["SHIFT", "capacity"])
def digits_kernel(
    values, total, state, counts, capacity, SHIFT,
    BITS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """counts[digit] of the positive values whose higher digits are those of the bound so far."""
    bins: tl.constexpr = 1 << BITS
    length = tl.minimum(tl.load(total), capacity)
    start = tl.program_id(0).to(tl.int64) * (BLOCK * BLOCKS)
    if start < length:
        found = tl.zeros((bins,), tl.int32)
        higher = tl.load(state)
        for block in range(BLOCKS):
            at = start + block * BLOCK + tl.arange(0, BLOCK)
            order = ordered(tl.load(values + at, mask=at < length, other=0.0))
            counted = (order > 0) & ((order >> SHIFT) >> BITS == (higher >> SHIFT) >> BITS)
            # What does not count goes to digit 0, and is taken off again.
            digit = tl.where(counted, (order >> SHIFT) & (bins - 1), 0)
            others = tl.sum((counted == 0).to(tl.int32), axis=0)
            found += tl.histogram(digit, bins) - tl.where(tl.arange(0, bins) == 0, others, 0)
        tl.atomic_add(counts + tl.arange(0, bins), found, mask=found > 0)


@triton.jit
def digit_kernel(state, counts, bound, SHIFT: tl.constexpr, BITS: tl.constexpr):
    """Add the next digit to the bound: the largest with `left` values at or above it (else 0).

    state = [bound, left, equal]: left loses what lies above the digit. `bound` becomes the number
    itself, but at most infinity: what is collected above it then are the NaN.
    """
    bins: tl.constexpr = 1 << BITS
    digit = tl.arange(0, bins)
    found = tl.load(counts + digit)
    above = tl.sum(found, axis=0) - tl.cumsum(found, axis=0)  # values at higher digits
    left = tl.load(state + 1)
    # Above the digit that holds the bound lie fewer than are left: it is the lowest such digit.
    chosen = tl.min(tl.where(above < left, digit, bins - 1), axis=0)
    passed = tl.sum(tl.where(digit == chosen, above, 0), axis=0)
    equal = tl.sum(tl.where(digit == chosen, found, 0), axis=0)
    order = tl.load(state) | (chosen << SHIFT)
    tl.debug_barrier()
    tl.store(state, order)
    tl.store(state + 1, left - passed)
    tl.store(state + 2, equal)
    tl.store(bound, from_ordered(tl.minimum(order, _INFINITY)))


def _search(values, total, wanted):
    """(state int32 [3], bound fp32 [1]) of the `wanted` largest of values[:total] that are > 0.

    state: `ordered` bound (0: all are wanted), how many equal to it are wanted, how many there are.
    """
    device, capacity = values.device, values.numel()
    state = torch.zeros(3, dtype=torch.int32, device=device)
    state[_LEFT].fill_(wanted)
    bound = torch.zeros(1, device=device)
    for shift, bits in _DIGITS:
        counts = torch.zeros(1 << bits, dtype=torch.int32, device=device)
        if capacity:
            digits_kernel[(triton.cdiv(capacity, _BLOCK * _BLOCKS),)](
                values, total, state, counts, capacity, shift,
                BITS=bits, BLOCK=_BLOCK, BLOCKS=_BLOCKS, num_warps=8,
            )  # fmt: skip
        digit_kernel[(1,)](state, counts, bound, SHIFT=shift, BITS=bits, num_warps=4)
    return state, bound


class _Sample:
    """Pre-activations of tokens spread over the batch, and bounds that they suggest."""

    def __init__(self, x, W, b, k):
        self.tokens, self.k = min(len(x), _SAMPLE), k
        rows = x[:: len(x) // self.tokens][: self.tokens].contiguous()
        self.pre = _dense.pre_activations(rows, W, b, 0, self.tokens).view(-1)
        self.total = torch.full((1,), self.pre.numel(), device=x.device)

    def bound(self, margin):
        """fp32 [1]: about `margin` k values a token lie above it, if so many are positive."""
        # The square root of so small a count still is a fair share of it: 64 more.
        wanted = margin * self.k * self.tokens + 64
        if wanted >= self.pre.numel():
            return torch.zeros(1, device=self.pre.device)
        return _search(self.pre, self.total, wanted)[1]


def _room(N, F, k, margin):
    """Places for what a sample's bound lets through: twice what it promises."""
    return min(N * F, 2 * margin * N * k + 4096)


def _check(N, k):
    if N * k > MOST:
        raise NotImplementedError(f"N k = {N * k}: BatchTopK on a GPU keeps up to {MOST} entries")


def encode_batchtopk(x, W, b, k):
    """(values fp32, indices, row_offsets) of the N k largest positive pre-activations.

    x [N, d] and W [F, d] in bf16 or fp32, contiguous; b [F]. Asks the device how many there are.
    """
    N, F = len(x), len(W)
    _check(N, k)
    if not N:
        empty = torch.empty(0, dtype=torch.int32, device=x.device)
        return empty.float(), empty, torch.zeros(1, dtype=torch.int64, device=x.device)
    sample, margin = _Sample(x, W, b, k), _MARGIN
    while True:
        bound = sample.bound(margin)
        entries = collect(x, W, b, bound, _room(N, F, k, margin))
        total = int(entries.total)
        if total > MOST:
            raise NotImplementedError(f"{total} candidates: a GPU's list holds up to {MOST}")
        if total > len(entries.values):
            entries = collect(x, W, b, bound, total)
        if total >= N * k or float(bound) == 0:
            break
        margin *= 4
    state, _ = _search(entries.values, entries.total, N * k)
    lowest, left, equal = state.tolist()
    if lowest and equal > left:
        _drop_last(entries, total, lowest, left, F)
    code = _csr.code(entries, N, F, N * k if lowest else total, state[:1].clamp(min=1))
    return code.values, code.indices, code.row_offsets


def _drop_last(entries, total, lowest, left, F):
    """Take all but the first `left` of the entries equal to the bound off the list."""
    values = entries.values[:total]
    tied = values.isnan() if lowest == NAN else values.view(torch.int32) == lowest
    places = tied.nonzero().flatten()
    order = (entries.tokens[places].long() * F + entries.features[places]).argsort()
    values[places[order[left:]]] = float("-inf")


def padded(x, W, b, k):
    """(values fp32, indices, row_offsets, rows, whether it is right: bool [1]), in N k places.

    The device is asked for nothing. The code is not right when the sample was far off, or when more
    values equal the bound than are wanted.
    """
    N, F = len(x), len(W)
    _check(N, k)
    bound = _Sample(x, W, b, k).bound(_MARGIN)
    entries = collect(x, W, b, bound, _room(N, F, k, _MARGIN))
    state, _ = _search(entries.values, entries.total, N * k)
    code = _csr.code(entries, N, F, N * k, state[:1].clamp(min=1))
    enough = (entries.total >= N * k) | (bound == 0)
    untied = (state[_BOUND] == 0) | (state[_LEFT] == state[_EQUAL])
    return *code, enough & untied & (entries.total <= len(entries.values))


BUILDS = (
    *(
        Build(
            f"count digits of {bits} bits",
            digits_kernel,
            {"values": "*fp32", "total": "*i64", "state": "*i32", "counts": "*i32"}
            | {"capacity": "i64", "SHIFT": "i32"},
            {"BITS": bits, "BLOCK": _BLOCK, "BLOCKS": _BLOCKS},
            warps=8,
            limits=Limits(registers=255),
        )
        for bits in (11, 10)
    ),
    Build(
        "next digit",
        digit_kernel,
        {"state": "*i32", "counts": "*i32", "bound": "*fp32"},
        {"SHIFT": 20, "BITS": 11},
        warps=4,
        limits=Limits(registers=128, shared=1024),
    ),
)
