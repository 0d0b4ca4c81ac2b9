"""fp32 numbers as integers of the same order, so that selecting is comparing integers."""

import triton
import triton.language as tl

LOWEST = -(2**31)  # below every number
INFINITY = 0x7F800000
NAN = 0x7FC00000  # above every number, the infinities too
LAST = 2**31 - 1

_LOWEST = tl.constexpr(LOWEST)
_NAN = tl.constexpr(NAN)
_LAST = tl.constexpr(LAST)


@triton.jit
def ordered(x):
    """int32 that compares as fp32 x does; NaN of either sign is the largest."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x == x, bits ^ ((bits >> 31) & _LAST), _NAN)


@triton.jit
def from_ordered(order):
    """The fp32 number that `ordered` came from."""
    return (order ^ ((order >> 31) & _LAST)).to(tl.float32, bitcast=True)


@triton.jit
def store_pair(pairs, place, order, feature, mask):
    """pairs[place] = an int64 that sorts by value, and of equal values puts the lower feature higher.

    Written as its two halves: in 64 bits, the entries of a long row would not fit the registers.
    """
    halves = pairs.to(tl.pointer_type(tl.int32))
    tl.store(halves + 2 * place, feature ^ _LAST, mask=mask)
    tl.store(halves + 2 * place + 1, order, mask=mask)


@triton.jit
def split(pair):
    """(ordered value, feature) of what `store_pair` wrote."""
    return (pair >> 32).to(tl.int32), (pair & _LAST).to(tl.int32) ^ _LAST
