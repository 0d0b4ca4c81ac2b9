"""The walk of attention_capture over the tiles of keys, and its pieces.

A tile of scores [BM, BN] is looked at as slices [BM, 8]. In the tensor cores' layout a thread holds
the same columns of every slice, so going through the slices moves nothing between threads, a slice's
place is a constant of its instructions, and sums can stay [BM, 8] until the last tile.
"""

import triton
import triton.language as tl

from trustbench.kernels.triton._matmul import dot

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NOWHERE = tl.constexpr(2**30)  # above every position
# Base-2 logits: of a row that has seen no key, and of a key that is not seen, far below it. They are
# finite, because probabilities of 0 are multiplied by their logits.
FLOOR = tl.constexpr(-1e20)
HIDDEN = tl.constexpr(-1e24)


@triton.jit
def capped(s, cap):
    """cap * tanh(s / cap); by its series where 1 - 2 / (exp(2 y) + 1) cancels."""
    y = s / cap
    square = y * y
    series = square * (-1382.0 / 155925) + 62.0 / 2835
    series = square * (square * (square * series - 17.0 / 315) + 2.0 / 15) - 1.0 / 3
    far = 1.0 - 2.0 / (tl.exp2(y * (2 * LOG2E)) + 1.0)
    return cap * tl.where(square < 0.09, y + y * square * series, far)


@triton.jit
def rounded(s, factor):
    """s * factor, not fused with what is subtracted from it."""
    return tl.fma(s, factor, 0.0)


@triton.jit
def interval(position, S, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """(first, last) key that queries at `position` see, whatever the segments."""
    first, last = position * 0, position
    if WINDOW:
        first = tl.maximum(position - (window - 1), 0)
    if not CAUSAL:
        last = position * 0 + (S - 1)
        if WINDOW:
            last = tl.minimum(position + (window - 1), S - 1)
    return first, last


@triton.jit
def paths(p0, p1, S, window, last_n, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BN: tl.constexpr):
    """Two paths over the key tiles of queries p0 .. p1: those seen whole, and those seen in part.

    A tile seen whole is seen by every query and holds none of its last_n keys. A path: the first
    tile, after how many there is a gap and how wide it is, the same of another gap, how many tiles.
    """
    first, whole_to = interval(p0, S, window, CAUSAL, WINDOW)
    whole_from, last = interval(p1, S, window, CAUSAL, WINDOW)
    t, z = first // BN, last // BN + 1
    # Of t .. z, what is in a .. b and c .. e is seen whole.
    a = tl.minimum(tl.cdiv(whole_from, BN), z)
    e = tl.maximum((whole_to + 1) // BN, a)
    b = tl.minimum(tl.maximum(tl.maximum(p0 - (last_n - 1), 0) // BN, a), e)
    c = tl.minimum(tl.maximum(p1 // BN + 1, b), e)
    whole = (a, b - a, c - b, 0, 0, b - a + e - c)
    part = (t, a - t, b - a, a - t + c - b, e - c, a - t + c - b + z - e)
    return whole, part


@triton.jit
def columns_from(first, BM: tl.constexpr, BN: tl.constexpr):
    """Boolean [BM, BN]: the columns from first [BM] on."""
    slices = 8 * tl.arange(0, BN // 8)
    ahead = slices[None, :, None] >= (first[:, None] - tl.arange(0, 8)[None, :])[:, None, :]
    return tl.reshape(ahead, (BM, BN))


@triton.jit
def _halves(t, BM: tl.constexpr, SLICES: tl.constexpr):
    """(first, second) half of the slices of t [BM, 8 SLICES]."""
    parts = tl.permute(tl.reshape(t, (BM, 2, SLICES // 2, 8)), (0, 2, 3, 1))
    first, second = tl.split(parts)
    return tl.reshape(first, (BM, SLICES * 4)), tl.reshape(second, (BM, SLICES * 4))


@triton.jit
def add_whole(p, x, mass, logit, back, AFTER: tl.constexpr, BM: tl.constexpr, SLICES: tl.constexpr):
    """Add p, p x, and p times the columns that come after its slice, to three sums [BM, 8].

    p and x are [BM, 8 SLICES]; AFTER columns come after their last slice.
    """
    if SLICES == 1:
        return mass + p, tl.fma(p, x, logit), tl.fma(p, AFTER, back) if AFTER > 0 else back
    else:
        p0, p1 = _halves(p, BM, SLICES)
        x0, x1 = _halves(x, BM, SLICES)
        mass, logit, back = add_whole(
            p0, x0, mass, logit, back, AFTER + 4.0 * SLICES, BM, SLICES // 2
        )
        return add_whole(p1, x1, mass, logit, back, AFTER, BM, SLICES // 2)


@triton.jit
def add_part(
    p, x, mass, logit, back, near, ago, last_n,
    AT: tl.constexpr, CAUSAL: tl.constexpr, BM: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Add p, p x, p times how far back its key lies, and p of the last_n keys, to four sums [BM, 8].

    ago [BM, 8]: how far back the keys are AT columns before the first slice. Causal: p is 0 ahead.
    """
    if SLICES == 1:
        ago -= AT
        close = ago < last_n
        if not CAUSAL:
            close = close & (ago >= 0)
        near += tl.where(close, p, 0.0)
        return mass + p, tl.fma(p, x, logit), tl.fma(p, ago, back), near
    else:
        p0, p1 = _halves(p, BM, SLICES)
        x0, x1 = _halves(x, BM, SLICES)
        mass, logit, back, near = add_part(
            p0, x0, mass, logit, back, near, ago, last_n, AT, CAUSAL, BM, SLICES // 2
        )
        return add_part(
            p1, x1, mass, logit, back, near, ago, last_n, AT + 4.0 * SLICES, CAUSAL, BM, SLICES // 2
        )


@triton.jit
def _first_of(t, wanted, found, AT: tl.constexpr, BM: tl.constexpr, SLICES: tl.constexpr):
    """found [BM, 8], or where t [BM, 8 SLICES] is `wanted` [BM, 1]: AT plus its first such slice."""
    if SLICES == 1:
        return tl.where(t == wanted, AT, found)
    else:
        first, second = _halves(t, BM, SLICES)
        found = _first_of(second, wanted, found, AT + 4 * SLICES, BM, SLICES // 2)
        return _first_of(first, wanted, found, AT, BM, SLICES // 2)


@triton.jit
def column_of(t, wanted, BM: tl.constexpr, BN: tl.constexpr):
    """The lowest column of every row of t [BM, BN] that is `wanted` [BM]."""
    found = _first_of(t, wanted[:, None], tl.full((BM, 8), BN, tl.int32), 0, BM, BN // 8)
    return tl.min(found + tl.arange(0, 8)[None, :], axis=1)


@triton.jit
def before(logit, place, other_logit, other_place):
    """Whether a key stands before another: its logit is higher, or as high and its place lower."""
    return (logit > other_logit) | ((logit == other_logit) & (place < other_place))


@triton.jit
def keep_largest(
    s, peak, unit, start, hidden, logits, places, worst, at, BM: tl.constexpr, BN: tl.constexpr
):
    """Put the keys of tile s that stand before a row's last into the row's list (logits, places).

    Lists [BM, n] are in no order; (worst, at) is what stands last, and gives its entry to the next.
    A round costs seven instructions an entry of s. Rounds go on while any row has a key to put in;
    most tiles have none.
    """
    # The tile's first place stands for the peak's own: one round too many at worst.
    more = tl.max(before(peak * unit, start, worst, at).to(tl.int32), axis=0)
    if more > 0:
        while more > 0:
            column = column_of(s, peak, BM, BN)
            logit, place = peak * unit, start + column
            here = before(logit, place, worst, at)[:, None] & (places == at[:, None])
            logits = tl.where(here, logit[:, None], logits)
            places = tl.where(here, place[:, None], places)
            worst = tl.min(logits, axis=1)
            at = tl.max(tl.where(logits == worst[:, None], places, -1), axis=1)
            taken = columns_from(column, BM, BN) ^ columns_from(column + 1, BM, BN)
            s = tl.where(taken, hidden, s)
            peak = tl.max(s, axis=1)
            more = tl.max(before(peak * unit, start, worst, at).to(tl.int32), axis=0)
    return logits, places, worst, at


@triton.jit
def rows_of(
    t, matrix, start, count,
    D: tl.constexpr, BD: tl.constexpr, N: tl.constexpr, WHOLE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """[N, BD]: rows start .. of one of t's matrices [count, D]; zeros outside."""
    if TMA:
        return tl.reshape(t.load([matrix, start, 0]), (N, BD))
    else:
        rows, cols = tl.arange(0, N), tl.arange(0, BD)
        at = t + (matrix.to(tl.int64) * count + start) * D + (rows[:, None] * D + cols[None, :])
        if WHOLE and D == BD:
            return tl.load(at)
        else:
            inside = (cols < D)[None, :] & (rows < count - start)[:, None]
            return tl.load(at, mask=inside, other=0.0)


@triton.jit
def walk(
    state, path, queries, k, v, segments, bias, kv, position, segment, own, S, window, last_n, units,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    TOP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """`state`, with what the tiles of `path` add to it."""
    SLICES: tl.constexpr = BN // 8
    # Rounded logits: the highest x is exactly 0, and p of a row's only key (of tiles seen in part) 1.
    BIASED: tl.constexpr = bias is not None
    ROUNDED: tl.constexpr = MASKED or BIASED or queries.dtype == tl.float32
    acc, level, mass, logit, away, last, logits, places, worst, at = state
    first, gap, skipped, next_gap, next_skipped, count = path
    factor, scale, cap = units
    in_slice = tl.arange(0, 8).to(tl.float32)[None, :]
    none = tl.zeros((BM, 8), tl.float32)
    for i in range(count):
        tile = first + i + tl.where(i >= gap, skipped, 0) + tl.where(i >= next_gap, next_skipped, 0)
        start = tile * BN
        keys = rows_of(k, kv, start, S, D, BD, BN, not MASKED, TMA)
        s = dot(queries, keys.T, tl.zeros((BM, BN), tl.float32), "ieee")
        if SOFTCAP:
            s = capped(s * scale, cap)
        unit, hidden = factor, HIDDEN / factor
        if ROUNDED:
            unit, hidden = 1.0, HIDDEN
            s = rounded(s, factor)
        if BIASED:
            cols = start + tl.arange(0, BN)
            more = tl.load(bias + cols, mask=cols < S, other=0.0)[None, :] - own[:, None]
            s = tl.fma(more, LOG2E, s)
        if MASKED:
            low, high = interval(position, S, window, CAUSAL, WINDOW)
            seen = columns_from(high + 1 - start, BM, BN) == 0
            if WINDOW:
                seen = seen & columns_from(low - start, BM, BN)
            s = tl.where(seen, s, hidden)
        if segments is not None:
            cols = start + tl.arange(0, BN)
            theirs = tl.maximum(tl.load(segments + cols, mask=cols < S, other=-1), -1)
            s = tl.where(theirs[None, :] == segment[:, None], s, hidden)

        peak = tl.max(s, axis=1)
        reached = peak * unit
        old, level = level, tl.maximum(level, reached)
        shrink = tl.exp2(old - level)[:, None]
        if ROUNDED:
            x, peak_x = s - level[:, None], peak - level
        else:
            x, peak_x = tl.fma(s, unit, -level[:, None]), tl.fma(peak, unit, -level)
        p = tl.exp2(x)
        logit = (logit + (old - level)[:, None] * mass) * shrink
        mass, away = mass * shrink, away * shrink
        if MASKED:
            ago = (position - start).to(tl.float32)[:, None] - in_slice
            mass, logit, away, last = add_part(
                p, x, mass, logit, away, last * shrink, ago, last_n, 0.0, CAUSAL, BM, SLICES
            )
        else:
            fresh, fresh_logit, back = add_whole(p, x, none, none, none, 0.0, BM, SLICES)
            ago = (position - (start + BN - 1)).to(tl.float32)[:, None] + (7 - in_slice)
            mass, logit, away = mass + fresh, logit + fresh_logit, away + (back + fresh * ago)
        if TOP == 1:
            place = start + column_of(x, peak_x, BM, BN)
            at = tl.where(before(reached, place, old, at), place, at)
        if TOP > 1:
            logits, places, worst, at = keep_largest(
                s, peak, unit, start, hidden, logits, places, worst, at, BM, BN
            )
        values = rows_of(v, kv, start, S, D, BD, BN, not MASKED, TMA)
        acc = dot(p.to(values.dtype), values, acc * shrink, "ieee")
    return acc, level, mass, logit, away, last, logits, places, worst, at
