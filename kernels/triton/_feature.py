"""The sums of one feature's entries, and how the long ones are shared out.

Everything here is feature-stationary: a program holds what belongs to a feature in registers and
walks its entries, tokens ascending. A feature with more than LONG entries would keep one
multiprocessor busy while the others wait: its entries are cut into chunks of LONG, programs of their
own sum those, and the feature's program adds the chunks' sums in order. All of it is deterministic.
"""

import torch
import triton
import triton.language as tl

from trustbench.kernels.sizes import LONG


@triton.jit
def entries(values, rows, positions, first, end, U: tl.constexpr):
    """(value fp32, token int64, on) [U] of entries first .. first + U of the feature order.

    An entry counts (`on`) where its value is > 0.
    """
    at = first + tl.arange(0, U)
    position = tl.load(positions + at, mask=at < end, other=0)
    token = tl.load(rows + at, mask=at < end, other=0).to(tl.int64)
    value = tl.load(values + position, mask=at < end, other=0.0).to(tl.float32)
    on = value > 0
    return tl.where(on, value, 0.0), token, on


@triton.jit
def token_rows(source, token, wanted, cols, d):
    """fp32 [U, BD]: source[token], zero where not wanted."""
    at = source + token[:, None] * d + cols[None, :]
    return tl.load(at, mask=wanted[:, None] & (cols < d)[None, :], other=0.0).to(tl.float32)


@triton.jit
def gradient_sums(
    values, push, rows, positions, x, grad, w, slope, first, end, cols, d, wide, e,
    PUSH: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """Over entries first .. end of a feature with decoder row w [BE], fp32:

    (dW_dec [BE] = Σ a grad[n], dW_enc [BD] = Σ dpre x[n], db = Σ dpre, Σ a, how many), where
    dpre = <grad[n], w> + slope. PUSH: every entry has its own push in the place of the slope, and
    the fourth sum is Σ push a. x has d columns (cols), grad has e (wide).
    """
    d_dec = tl.zeros((BE,), tl.float32)
    d_enc = tl.zeros((BD,), tl.float32)
    db = 0.0
    mass = 0.0
    active = 0
    for at in range(first, end, U):
        a, token, on = entries(values, rows, positions, at, end, U)
        g = token_rows(grad, token, on, wide, e)
        mine = slope
        if PUSH:
            mine = tl.load(
                push + tl.load(positions + at + tl.arange(0, U), mask=on, other=0), mask=on, other=0.0
            )
        dpre = tl.where(on, tl.sum(g * w[None, :], axis=1) + mine, 0.0)
        d_dec += tl.sum(a[:, None] * g, axis=0)
        d_enc += tl.sum(dpre[:, None] * token_rows(x, token, on, cols, d), axis=0)
        db += tl.sum(dpre, axis=0)
        mass += tl.sum(mine * a if PUSH else a, axis=0)
        active += tl.sum(on.to(tl.int32), axis=0)
    return d_dec, d_enc, db, mass, active


@triton.jit
def chunk_of(offsets, chunk_ends, F, chunk, LONG: tl.constexpr):
    """(feature, first entry, end) of a chunk: the first feature whose chunks end after it."""
    low, high = tl.full((), 0, tl.int32), F
    while low < high:
        middle = (low + high) // 2
        if tl.load(chunk_ends + middle) > chunk:
            high = middle
        else:
            low = middle + 1
    end = tl.load(offsets + low + 1)
    start = tl.load(offsets + low)
    mine = chunk - (tl.load(chunk_ends + low) - tl.cdiv(end - start, LONG))
    first = start + mine * LONG
    return low, first, tl.minimum(first + LONG, end)


def chunk_ends(offsets: torch.Tensor) -> torch.Tensor:
    """int32 [F]: running count of the chunks of long features."""
    count = offsets.diff()
    chunks = torch.where(count > LONG, (count + (LONG - 1)) // LONG, 0)
    return chunks.cumsum(0, dtype=torch.int32)


def most_chunks(nnz: int, F: int) -> int:
    """At least as many as any code of nnz entries has: a long feature's last chunk may be short."""
    return nnz // LONG + min(nnz // (LONG + 1), F)
