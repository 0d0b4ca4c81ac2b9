"""attention_capture: flash attention whose loop also sums what the statistics need.

A program has BM queries of one head and walks over the tiles of keys that they see: first those seen
whole, without a mask, then those seen in part. With m the highest base-2 logit so far, x = logit - m
and p = 2^x, it sums p v, p, p x, p (t - j) and, of the tiles seen in part, p of the last keys. When m
rises by r, Σ p x becomes 2^-r (Σ p x - r Σ p). Both terms have one sign, as have those of the entropy
(log2 Σ p - Σ p x / Σ p, in bits) and of distances (counted from a tile's right end): nothing cancels.

Instructions a score, of tiles seen whole, on sm_90:
    flash attention     4.5 + D / BN: max, x, p (one, but its unit takes eight turns), Σ p, half a
                        conversion of p; and Σ p v to rescale
    Σ p x, Σ p (t - j)  2
    top = 1             2: whether it is the peak, and its place
    top > 1             0 in most tiles; 7 a round, of which a tile has as many as the row that most
                        keys enter the list of
    a bias              2, and one for rounding apart
    the tile's own      3 (BN = 128) to 5 (BN = 64): handing over tiles, and what is done once a row
As compiled: 12.9 for D = BN = 128 and 15.2 for D = BN = 64, with top = 1; 10.5 and 12.4 with top = 0.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton._attention import (
    FLOOR,
    LN2,
    LOG2E,
    NOWHERE,
    capped,
    interval,
    paths,
    rounded,
    rows_of,
    walk,
)
from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._launch import chosen


@triton.jit(do_not_specialize=["H", "group", "T", "S", "window", "last_n"])
def attention_kernel(
    q, k, v, sinks, segments, bias, out, lse, entropy, distance, last, top_p, top_index, levels,
    shares, H, group, T, S, window, last_n, factor, scale, cap,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, TOP: tl.constexpr,
    LIST: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """All but the mass of targets, for which m and the probability of a key at m are left.

    factor makes base-2 logits of products of q and k (SOFTCAP: of what `capped` makes of them, times
    scale). LIST: TOP as a power of two.
    """
    blocks = tl.cdiv(T, BM)
    head = tl.program_id(0) // blocks
    block = blocks - 1 - tl.program_id(0) % blocks  # of causal rows, those that see most go first
    rows = block * BM + tl.arange(0, BM)
    inside = rows < T
    p0, p1 = block * BM + (S - T), tl.minimum(block * BM + BM, T) - 1 + (S - T)
    position = tl.where(inside, rows + (S - T), -1)
    segment = position
    if segments is not None:
        segments += (head // H).to(tl.int64) * S
        segment = tl.load(segments + position, mask=inside, other=-1)
        segment = tl.where(segment < 0, -2, segment)  # keys outside of any segment have -1
    own = position
    if bias is not None:
        bias += head.to(tl.int64) * S
        own = tl.load(bias + position, mask=inside, other=0.0)
    queries = rows_of(q, head, block * BM, T, D, BD, BM, False, False)

    low = tl.full((BM,), FLOOR, tl.float32)
    zeros = tl.zeros((BM, 8), tl.float32)
    nth = tl.arange(0, LIST)[None, :] + tl.zeros((BM, LIST), tl.int32)
    logits = tl.where(nth < TOP, FLOOR, float("inf"))
    at = tl.full((BM,), NOWHERE + TOP - 1, tl.int32)
    acc = tl.zeros((BM, BD), tl.float32)
    state = (acc, low, zeros, zeros, zeros, zeros, logits, nth + NOWHERE, low, at)
    whole, part = paths(p0, p1, S, window, last_n, CAUSAL, WINDOW, BN)
    units = (factor, scale, cap)
    state = walk(
        state, whole, queries, k, v, segments, bias, head // group, position, segment, own, S, window,
        last_n, units, False, CAUSAL, WINDOW, SOFTCAP, TOP, D, BD, BM, BN, TMA,
    )  # fmt: skip
    state = walk(
        state, part, queries, k, v, segments, bias, head // group, position, segment, own, S, window,
        last_n, units, True, CAUSAL, WINDOW, SOFTCAP, TOP, D, BD, BM, BN, TMA,
    )  # fmt: skip
    acc, level, mass, logit, away, near, logits, places, _, at = state

    mass, logit = tl.sum(mass, axis=1), tl.sum(logit, axis=1)
    away, near = tl.sum(away, axis=1), tl.sum(near, axis=1)
    some = mass != 0
    above, total = level, mass  # the same with the sink
    if sinks is not None:
        sink = tl.load(sinks + head % H) * LOG2E
        above = tl.maximum(level, sink)
        total = mass * tl.exp2(level - above) + tl.exp2(sink - above)
    share = tl.where(total != 0, tl.exp2(level - above) / total, 0.0)
    bits = tl.log2(total)
    spread = share * (mass * bits - (logit + (level - above) * mass))
    here = head.to(tl.int64) * T + rows
    tl.store(lse + here, (above + bits) * LN2, mask=inside)
    tl.store(entropy + here, tl.where(some, spread * LN2, 0.0), mask=inside)
    tl.store(distance + here, tl.where(some, away / mass, 0.0), mask=inside)
    tl.store(last + here, near * share, mask=inside)
    tl.store(levels + here, level, mask=inside)
    tl.store(shares + here, share, mask=inside)
    if TOP == 1:
        tl.store(top_p + here, share, mask=inside)
        tl.store(top_index + here, tl.where(at < NOWHERE, at, -1), mask=inside)
    if TOP > 1:
        for n in range(TOP):
            logits = tl.where(nth < TOP, logits, 2 * FLOOR)
            highest = tl.max(logits, axis=1)
            place = tl.min(tl.where(logits == highest[:, None], places, 2 * NOWHERE - 1), axis=1)
            there = highest > FLOOR
            p = tl.where(there, tl.exp2(highest - level) * share, 0.0)
            tl.store(top_p + here * TOP + n, p, mask=inside)
            tl.store(top_index + here * TOP + n, tl.where(there, place, -1), mask=inside)
            logits = tl.where(places == place[:, None], 2 * FLOOR, logits)
    cols = tl.arange(0, BD)
    acc = (acc * share[:, None]).to(out.dtype.element_ty)
    out_at = out + here[:, None] * D + cols[None, :]
    tl.store(out_at, acc, mask=inside[:, None] & (cols < D)[None, :])


@triton.jit(do_not_specialize=["H", "group", "T", "S", "M", "window"])
def mass_kernel(
    q, k, segments, bias, targets, levels, shares, mass, H, group, T, S, M, window, factor, scale,
    cap, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """The probabilities of M keys each, for R queries of one head."""
    blocks = tl.cdiv(T, R)
    head = tl.program_id(0) // blocks
    batch = (head // H).to(tl.int64)
    start = tl.program_id(0) % blocks * R
    rows = start + tl.arange(0, R)
    inside = rows < T
    low, high = interval(rows + (S - T), S, window, CAUSAL, WINDOW)
    here = head.to(tl.int64) * T + rows
    level = tl.load(levels + here, mask=inside, other=0.0)
    share = tl.load(shares + here, mask=inside, other=0.0)
    cols = tl.arange(0, BD)
    queries = rows_of(q, head, start, T, D, BD, R, False, False).to(tl.float32)
    k += (head // group).to(tl.int64) * S * D
    if bias is not None:
        bias += head.to(tl.int64) * S
        own = tl.load(bias + rows + (S - T), mask=inside, other=0.0)
    for m in range(M):
        at = tl.load(targets + (batch * T + rows) * M + m, mask=inside, other=-1)
        seen = inside & (at >= low) & (at <= high)
        if segments is not None:
            mine = tl.load(segments + batch * S + rows + (S - T), mask=inside, other=-1)
            theirs = tl.load(segments + batch * S + at, mask=seen, other=-1)
            seen = seen & (mine == theirs) & (mine >= 0)
        keys_at = k + at[:, None].to(tl.int64) * D + cols[None, :]
        keys = tl.load(keys_at, mask=seen[:, None] & (cols < D)[None, :], other=0.0)
        s = tl.sum(queries * keys.to(tl.float32), axis=1)
        if SOFTCAP:
            s = capped(s * scale, cap)
        s = rounded(s, factor)
        if bias is not None:
            more = tl.load(bias + at, mask=seen, other=0.0) - own
            s = tl.fma(more, LOG2E, s)
        # Its sum has another order than the tensor cores': the highest may come out above m.
        p = tl.exp2(s - level) * share
        p = tl.minimum(p, 1.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(mass + here * M + m, tl.where(seen, p, 0.0), mask=inside)


class Tile(NamedTuple):
    """Queries and keys of a tile, warps, stages, and registers a thread (0: as many as it takes)."""

    BM: int
    BN: int
    warps: int
    stages: int
    registers: int = 0
    BD: int = 0

    def shared(self, item: int) -> int:
        """About the shared memory: the queries, and the keys and values of every stage."""
        return (self.BM + 2 * self.stages * self.BN) * self.BD * item


# By head dimension; the first that fits the device is the default.
Tiles = dict[int, tuple[Tile, ...]]
LEAN: Tiles = {  # top <= 1, no segments, no bias
    64: (Tile(128, 64, 8, 3, registers=128), Tile(128, 128, 8, 3)),  # two programs a multiprocessor
    128: (Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(128, 64, 8, 2)),
    256: (Tile(128, 64, 8, 2), Tile(32, 32, 4, 2)),
}
RICH: Tiles = {
    64: (Tile(128, 64, 8, 3),),
    128: (Tile(128, 64, 8, 3), Tile(128, 64, 8, 2)),
    256: (Tile(128, 32, 8, 2), Tile(32, 32, 4, 2)),
}
# sm_100's tensor memory gives a thread whole rows: of a slice it holds eight columns, not two.
WHOLE_ROWS: Tiles = {
    64: (Tile(128, 32, 8, 3),),
    128: (Tile(128, 32, 8, 3),),
    256: (Tile(128, 32, 8, 2),),
}
# fp32 products, without tensor cores.
IEEE: Tiles = {
    64: (Tile(64, 32, 8, 2),),
    128: (Tile(32, 32, 8, 2),),
    256: (Tile(32, 32, 8, 2), Tile(32, 32, 8, 1)),
}
HELD = 4096  # numbers of queries in a program of mass_kernel


def attention_capture(
    q, k, v, sinks, segments, key_bias, targets, causal, window, scale, softcap, top, last_n
):
    """(out, lse, entropy, distance, last, top_p, top_index, mass) of ops/attention_capture.py.

    All contiguous; q, k and v bf16, fp16 or fp32; sinks and key_bias fp32; window 0, softcap 0: none.
    """
    (B, H, T, D), (H_kv, S), M = q.shape, k.shape[1:3], targets.shape[2]
    fp32 = {"dtype": torch.float32, "device": q.device}
    rows = [torch.empty(B, H, T, **fp32) for _ in range(4)]
    top_p, mass = torch.empty(B, H, T, top, **fp32), torch.empty(B, H, T, M, **fp32)
    top_index = torch.empty(B, H, T, top, dtype=torch.int32, device=q.device)
    results = (torch.empty_like(q), *rows, top_p, top_index)
    if q.numel():
        levels, shares = torch.empty(2, B, H, T, **fp32)
        window = window if window < S else 0
        sizes = (H, H // H_kv, T, S)
        units = (LOG2E.value * (1 if softcap else scale), scale, softcap)
        flags = {"CAUSAL": causal, "WINDOW": window > 0, "SOFTCAP": softcap > 0, "D": D}
        tile = tile_for(q, top, segments is None and key_bias is None)
        keys, values, tma = descriptors(tile, k, v)
        attention_kernel[(B * H * triton.cdiv(T, tile.BM),)](
            q, keys, values, sinks, segments, key_bias, *results, levels, shares,
            *sizes, window, min(last_n, S), *units,
            TOP=top, LIST=triton.next_power_of_2(max(top, 1)), BD=tile.BD, BM=tile.BM, BN=tile.BN,
            TMA=tma, num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers or None,
            **flags,
        )  # fmt: skip
        R = min(HELD // tile.BD, 128)
        mass_kernel[(B * H * triton.cdiv(T, R),)](
            q, k, segments, key_bias, targets, levels, shares, mass, *sizes, M, window, *units,
            BD=tile.BD, R=R, **flags,
        )  # fmt: skip
    return *results, mass


def tile_for(q: torch.Tensor, top: int, plain: bool) -> Tile:
    """The tile for heads like q's. plain: no segments, and no bias."""
    T, D = q.shape[2:]
    lean = top <= 1 and plain
    table = LEAN if lean else RICH
    if q.device.type == "cuda" and torch.cuda.get_device_capability(q.device)[0] == 10:
        table = WHOLE_ROWS
    table = IEEE if q.dtype == torch.float32 else table
    width = max(triton.next_power_of_2(D), 16)
    tiles = [tile._replace(BD=width) for tile in table[max(width, 64)]]
    name = "attention_capture" if lean else "attention_capture.rich"
    return chosen(name, tiles, q.device, q.element_size(), T=T, d=D)


def descriptors(tile: Tile, k: torch.Tensor, v: torch.Tensor) -> tuple[Any, Any, bool]:
    """(k, v, whether they are tensor descriptors): for tensor cores, where the strides allow it."""
    able = k.device.type != "cuda" or torch.cuda.get_device_capability(k.device)[0] >= 9
    aligned = k.shape[3] * k.element_size() % 16 == 0 and (k.data_ptr() | v.data_ptr()) % 16 == 0
    if k.dtype == torch.float32 or not (able and aligned):
        return k, v, False
    from triton.tools.tensor_descriptor import TensorDescriptor

    block = [1, tile.BN, tile.BD]
    return *(TensorDescriptor.from_tensor(t.flatten(0, 1), block) for t in (k, v)), True


_FLAGS = {"CAUSAL": True, "WINDOW": False, "SOFTCAP": False, "TOP": 1}
_ALL = {"CAUSAL": True, "WINDOW": True, "SOFTCAP": True, "TOP": 16}
_UNITS = {"factor": "fp32", "scale": "fp32", "cap": "fp32"}


def _attention_build(
    kind: str, D: int, tile: Tile, target: int, flags=_FLAGS, spills=0, bias=False
) -> Build:
    rich, tma = flags is _ALL, kind == "bf16" and target >= 90
    matrix = f"tensordesc<{kind}[1,{tile.BN},{D}]>" if tma else f"*{kind}"
    rows = ("lse", "entropy", "distance", "last", "top_p")
    signature = {"q": f"*{kind}", "k": matrix, "v": matrix, "sinks": "*fp32" if rich else None}
    signature |= {"segments": "*i32" if rich else None, "bias": "*fp32" if bias else None}
    signature |= {"out": f"*{kind}"}
    signature |= dict.fromkeys(rows, "*fp32") | {"top_index": "*i32"}
    signature |= {"levels": "*fp32", "shares": "*fp32"}
    signature |= dict.fromkeys(("H", "group", "T", "S", "window", "last_n"), "i32") | _UNITS
    sizes = {"LIST": flags["TOP"], "D": D, "BD": D, "BM": tile.BM, "BN": tile.BN, "TMA": tma}
    words = f"{kind}, D = {D}, {tile.BM}x{tile.BN}, {tile.warps} warps, {tile.stages} stages"
    what = "all" if rich else "window" if flags["WINDOW"] else "causal"
    return Build(
        f"{words}, {what}{', bias' if bias else ''}, sm_{target}",
        attention_kernel, signature, flags | sizes, warps=tile.warps, stages=tile.stages,
        limits=Limits(registers=255, shared=227 * 1024, spills={target: spills}),
        targets=(target,), matmul=kind == "bf16",
    )  # fmt: skip


def _mass_build(kind: str, D: int, rich: bool, bias: bool = False) -> Build:
    signature = {"q": f"*{kind}", "k": f"*{kind}", "segments": "*i32" if rich else None}
    signature |= {"bias": "*fp32" if bias else None}
    signature |= {"targets": "*i32", "levels": "*fp32", "shares": "*fp32", "mass": "*fp32"}
    signature |= dict.fromkeys(("H", "group", "T", "S", "M", "window"), "i32") | _UNITS
    sizes = {"D": D, "BD": D, "R": min(HELD // D, 128)}
    flags = {name: _ALL[name] if rich else _FLAGS[name] for name in ("CAUSAL", "WINDOW", "SOFTCAP")}
    name = f"{kind}, D = {D}, {'all' if rich else 'causal'}{', bias' if bias else ''}"
    return Build(
        name, mass_kernel, signature, flags | sizes, warps=4, limits=Limits(registers=255),
    )  # fmt: skip


BUILDS = (
    _attention_build("bf16", 64, LEAN[64][0], 90),
    _attention_build("bf16", 64, LEAN[64][1], 90),
    _attention_build("bf16", 64, LEAN[64][0], 80),
    _attention_build("bf16", 64, RICH[64][0], 90, _ALL),
    _attention_build("bf16", 128, LEAN[128][0], 90),
    # Triton 3.6 is one register short in tiles seen in part, and spills with all options at once.
    _attention_build("bf16", 128, LEAN[128][0], 90, _FLAGS | {"WINDOW": True}, spills=2),
    _attention_build("bf16", 128, RICH[128][0], 90, _ALL, spills=70),
    # sm_80 holds the queries in registers as well.
    _attention_build("bf16", 128, LEAN[128][1], 80, spills=16),
    _attention_build("bf16", 128, LEAN[128][2], 80, spills=4),
    # Σ p v alone takes 128 registers.
    _attention_build("bf16", 256, LEAN[256][0], 90, spills=20),
    _attention_build("bf16", 256, RICH[256][0], 90, _ALL, spills=110),
    _attention_build("bf16", 256, LEAN[256][1], 80),
    _attention_build("bf16", 64, WHOLE_ROWS[64][0], 100),
    _attention_build("bf16", 128, WHOLE_ROWS[128][0], 100),
    # Lists, or eight columns a slice of six sums, besides what comes from the tensor memory.
    _attention_build("bf16", 128, WHOLE_ROWS[128][0], 100, _ALL, spills=400),
    _attention_build("bf16", 256, WHOLE_ROWS[256][0], 100, spills=150),
    *(_attention_build("fp32", D, tile, 90) for D, known in IEEE.items() for tile in known),
    *(_attention_build("fp32", 128, IEEE[128][0], target, _ALL) for target in (80, 100)),
    _attention_build("bf16", 64, RICH[64][0], 90, bias=True),
    _attention_build("bf16", 64, RICH[64][0], 80, bias=True),
    # Again Triton 3.6's, with all options at once.
    _attention_build("bf16", 64, RICH[64][0], 90, _ALL, spills=28, bias=True),
    _attention_build("bf16", 128, RICH[128][0], 90, bias=True),
    _attention_build("bf16", 128, RICH[128][0], 90, _ALL, spills=152, bias=True),
    _attention_build("bf16", 128, RICH[128][1], 80, spills=8, bias=True),
    _attention_build("bf16", 256, RICH[256][0], 90, bias=True),
    _attention_build("bf16", 128, WHOLE_ROWS[128][0], 100, bias=True),
    _attention_build("fp32", 64, IEEE[64][0], 90, bias=True),
    _mass_build("bf16", 128, False),
    _mass_build("fp32", 256, True),
    _mass_build("bf16", 128, False, bias=True),
)
