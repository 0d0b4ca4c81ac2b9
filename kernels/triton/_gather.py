"""Reading the weight rows of a token's code, U at a time."""

import triton
import triton.language as tl


@triton.jit
def rows_of(W, indices, places, wanted, cols, d):
    """fp32 [U, BD]: rows W[indices[places]], zero where not wanted."""
    feature = tl.load(indices + places, mask=wanted, other=0).to(tl.int64)
    at = W + feature[:, None] * d + cols[None, :]
    return tl.load(at, mask=wanted[:, None] & (cols < d)[None, :], other=0.0).to(tl.float32)


@triton.jit
def weighted_rows(values, indices, W, start, end, cols, d, BD: tl.constexpr, U: tl.constexpr):
    """fp32 [BD]: Σ values[p] W[indices[p]], p = start .. end. A value 0 never reads its row."""
    total = tl.zeros((BD,), tl.float32)
    for first in range(start, end, U):
        places = first + tl.arange(0, U)
        value = tl.load(values + places, mask=places < end, other=0.0).to(tl.float32)
        rows = rows_of(W, indices, places, value != 0, cols, d)
        total += tl.sum(value[:, None] * rows, axis=0)
    return total


@triton.jit
def products(out, grad, indices, W, start, end, cols, d, U: tl.constexpr):
    """out[p] = <grad [BD], W[indices[p]]>, p = start .. end."""
    for first in range(start, end, U):
        places = first + tl.arange(0, U)
        rows = rows_of(W, indices, places, places < end, cols, d)
        tl.store(out + places, tl.sum(grad[None, :] * rows, axis=1), mask=places < end)


@triton.jit
def token_range(row, row_offsets, k, CSR: tl.constexpr):
    """(start, end): where the entries of token `row` lie, int64."""
    if CSR:
        return tl.load(row_offsets + row), tl.load(row_offsets + row + 1)
    return row.to(tl.int64) * k, (row.to(tl.int64) + 1) * k
