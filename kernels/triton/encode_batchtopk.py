"""encode_batchtopk: the bound of a whole batch by counting the digits of values, then a CSR code.

Dense pre-activations are written once and read five times: three counts of digits (11, 10 and 10 bits
of the positive values' 31), a count a row, and the writing. Exact; ties go to the first token.
"""

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton import _csr, _dense
from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._order import ordered

_DIGITS = ((20, 11), (10, 10), (0, 10))  # (shift, bits), most significant first
_BLOCK = 4096
_BLOCKS = 8  # that one program counts


@triton.jit(do_not_specialize=["SHIFT"])
def digits_kernel(
    pre, state, counts, total, SHIFT, BITS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):
    """counts[digit] of the positive values whose higher digits are those of the bound so far."""
    bins: tl.constexpr = 1 << BITS
    found = tl.zeros((bins,), tl.int32)
    higher = tl.load(state)
    start = tl.program_id(0).to(tl.int64) * (BLOCK * BLOCKS)
    for block in range(BLOCKS):
        at = start + block * BLOCK + tl.arange(0, BLOCK)
        order = ordered(tl.load(pre + at, mask=at < total, other=0.0))
        counted = (order > 0) & ((order >> SHIFT) >> BITS == (higher >> SHIFT) >> BITS)
        # What does not count goes to digit 0, and is taken off again.
        digit = tl.where(counted, (order >> SHIFT) & (bins - 1), 0)
        others = tl.sum((counted == 0).to(tl.int32), axis=0)
        found += tl.histogram(digit, bins) - tl.where(tl.arange(0, bins) == 0, others, 0)
    tl.atomic_add(counts + tl.arange(0, bins), found, mask=found > 0)


@triton.jit
def digit_kernel(state, counts, SHIFT: tl.constexpr, BITS: tl.constexpr):
    """Add the next digit to the bound: the largest with `wanted` values at or above it (else 0).

    state = [bound, wanted]: wanted loses what lies above the digit.
    """
    bins: tl.constexpr = 1 << BITS
    digit = tl.arange(0, bins)
    found = tl.load(counts + digit)
    above = tl.sum(found, axis=0) - tl.cumsum(found, axis=0)  # values at higher digits
    wanted = tl.load(state + 1)
    # Above the digit that holds the bound lie fewer than wanted: it is the lowest such digit.
    chosen = tl.min(tl.where(above < wanted, digit, bins - 1), axis=0)
    passed = tl.sum(tl.where(digit == chosen, above, 0), axis=0)
    tl.debug_barrier()
    tl.store(state, tl.load(state) | (chosen << SHIFT))
    tl.store(state + 1, wanted - passed)


def encode_batchtopk(x, W, b, k):
    """(values fp32, indices, row_offsets) of the N k largest positive pre-activations.

    x [N, d] and W [F, d] in bf16 or fp32, contiguous; b [F]. Holds N F pre-activations in fp32.
    """
    N = len(x)
    if N * k >= 2**31:
        raise NotImplementedError(f"N k = {N * k}: BatchTopK on a GPU counts up to 2**31 entries")
    pre = _dense.pre_activations(x, W, b, 0, N)
    state = torch.tensor([0, N * k], dtype=torch.int32).to(x.device)
    for shift, bits in _DIGITS if N else ():
        counts = torch.zeros(1 << bits, dtype=torch.int32, device=x.device)
        digits_kernel[(triton.cdiv(pre.numel(), _BLOCK * _BLOCKS),)](
            pre, state, counts, pre.numel(), shift,
            BITS=bits, BLOCK=_BLOCK, BLOCKS=_BLOCKS, num_warps=8,
        )  # fmt: skip
        digit_kernel[(1,)](state, counts, SHIFT=shift, BITS=bits, num_warps=4)
    above, equal = _csr.count(pre, state=state)
    # Values equal to the bound, in the order of tokens and features, until N k are kept.
    left = N * k - above.sum(dtype=torch.int64)
    before = equal.cumsum(0, dtype=torch.int64) - equal
    quota = (left - before).clamp(min=0).minimum(equal).to(torch.int32)
    return _csr.write(pre, above + quota, state=state, quota=quota)


BUILDS = (
    *(
        Build(
            f"count digits of {bits} bits",
            digits_kernel,
            {"pre": "*fp32", "state": "*i32", "counts": "*i32", "total": "i64", "SHIFT": "i32"},
            {"BITS": bits, "BLOCK": _BLOCK, "BLOCKS": _BLOCKS},
            warps=8,
            limits=Limits(registers=255),
        )
        for bits in (11, 10)
    ),
    Build(
        "next digit",
        digit_kernel,
        {"state": "*i32", "counts": "*i32"},
        {"SHIFT": 20, "BITS": 11},
        warps=4,
        limits=Limits(registers=128, shared=1024),
    ),
)
