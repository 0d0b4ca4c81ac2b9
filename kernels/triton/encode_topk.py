"""encode_topk: a matmul whose epilogue keeps few candidates of every row, and an exact selection.

A tile's columns form 8 buckets of BN / 8 (columns of equal number mod 8: the ones that a thread of
the tensor cores' layout holds, so that nothing is exchanged). The epilogue writes the M largest of
every bucket as one 32-bit key (ordered value without its last bits, and the column's place in the
bucket in their stead), and the largest value that a bucket dropped. So M · 8 / BN of the
pre-activations are written. `select` takes the k largest candidates and flags a row that dropped a
value not below its k-th: those rows (about one in a hundred, see `plan`) are done again from dense
pre-activations. The result is exact with respect to pre-activations of 18 or 19 bits of mantissa:
more than sums of bf16 products are good for.

fp32 operands, a k for which buckets do not pay, or few features: dense pre-activations throughout.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton import _dense, _select
from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._launch import Config, chosen, descriptors, tile
from trustbench.kernels.triton._matmul import operand_kinds, place, precision, product
from trustbench.kernels.triton._order import LOWEST, ordered

_LOWEST = tl.constexpr(LOWEST)
_MOST_REDONE = 0.02  # expected share of rows for which M is too small
_FIRST_WAVE = 512  # rows done again at once, at first; more rows come in larger waves


@triton.jit(do_not_specialize=["N"])
def candidates_kernel(
    x, W, b, keys, dropped, N, F, d, M: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """keys [N, tiles, M, 8]: the M largest of every bucket; dropped [N, tiles]: the next largest."""
    BUCKET: tl.constexpr = BN // 8
    tiles_n = tl.cdiv(F, BN)
    tile_m, tile_n = place(tl.program_id(0), tl.cdiv(N, BM), tiles_n, GROUP)
    rows = tile_m * BM + tl.arange(0, BM)
    cols = tile_n * BN + tl.arange(0, BN)
    acc = product(x, W, rows, rows < N, tile_m * BM, tile_n * BN, d, F, BM, BN, BK, TMA, PRECISION)
    order = ordered(acc + tl.load(b + cols, mask=cols < F, other=0.0).to(tl.float32)[None, :])
    # Rounded to the bits that are kept; among equals the lower column has the larger key.
    place_in_bucket = BUCKET - 1 - tl.arange(0, BN) // 8
    key = ((order + BUCKET // 2) & -BUCKET) | place_in_bucket[None, :]
    key = tl.where((cols < F)[None, :], key, _LOWEST)
    key = tl.reshape(key, (BM, BUCKET, 8))
    row_tile = rows.to(tl.int64) * tiles_n + tile_n
    at = keys + row_tile[:, None] * (8 * M) + tl.arange(0, 8)[None, :]
    for m in tl.static_range(M):
        top = tl.max(key, axis=1)
        tl.store(at + 8 * m, top, mask=(rows < N)[:, None])
        key = tl.where(key == top[:, None, :], _LOWEST, key)
    tl.store(dropped + row_tile, tl.max(tl.max(key, axis=1), axis=1), mask=rows < N)


class Plan(NamedTuple):
    """How many of every bucket of how many columns are kept."""

    M: int
    bucket: int


def plan(F: int, k: int, BN: int = 128) -> Plan | None:
    """The fewest candidates with which few rows fail; None: buckets do not pay.

    With the k largest spread evenly, a bucket holds Poisson(k / buckets) of them; a row fails when
    any of its buckets holds more than M.
    """
    buckets = 8 * triton.cdiv(F, BN)
    rate = k / buckets
    for M in range(1, 9):
        above = 1 - sum(math.exp(-rate) * rate**i / math.factorial(i) for i in range(M + 1))
        if buckets * above <= _MOST_REDONE:
            return Plan(M, BN // 8)
    return None


def encode_topk(x, W, b, k):
    """(values fp32, indices int32) [N, k], largest first, ReLU'd.

    x [N, d] and W [F, d] in bf16 or fp32, contiguous; b [F]. Never asks the device for a figure.
    """
    (N, d), F = x.shape, W.shape[0]
    pairs = torch.empty(N, k, dtype=torch.int64, device=x.device)
    if N:
        config = chosen("encode_topk", CONFIGS, x.device, N=N, d=d, F=F)
        found = plan(F, k, config.tile["BN"]) if x.dtype == torch.bfloat16 else None
        if found is None:
            size = _dense.rows_at_once(F)
            for first in range(0, N, size):
                _selected(x, W, b, k, pairs, first, min(size, N - first))
        else:
            _bucketed(x, W, b, k, pairs, config, found)
    return _select.unpack(pairs)


def _bucketed(x, W, b, k, pairs, config: Config, kept: Plan) -> None:
    (N, d), F = x.shape, W.shape[0]
    BM, BN = config.tile["BM"], config.tile["BN"]
    tiles = triton.cdiv(F, BN)
    keys = torch.empty(N, tiles * 8 * kept.M, dtype=torch.int32, device=x.device)
    dropped = torch.empty(N, tiles, dtype=torch.int32, device=x.device)
    x_in, W_in, tma = descriptors(config, x, W)
    candidates_kernel[(triton.cdiv(N, BM) * tiles,)](
        x_in, W_in, b, keys, dropped, N, F, d, M=kept.M, TMA=tma, PRECISION=precision(x),
        **config.tile, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    flags = torch.empty(N, dtype=torch.int32, device=x.device)
    _select.select(keys, k, F, pairs, dropped=dropped, flags=flags, M=kept.M, BUCKET=kept.bucket)
    # Every wave ends at once where no row is left to do.
    listed = _select.list_rows(flags)
    first, size = 0, _FIRST_WAVE
    while first < N:
        size = min(size, N - first)
        _selected(x, W, b, k, pairs, first, size, listed)
        first, size = first + size, _dense.rows_at_once(F)


def _selected(x, W, b, k, pairs, first, rows, listed=None) -> None:
    """`rows` rows from `first` (of the list, if there is one) through dense pre-activations."""
    pre = _dense.pre_activations(x, W, b, first, rows, listed)
    _select.select(pre, k, W.shape[0], pairs, first=first, listed=listed)


# The first is the default; `trustbench tune` times them all on the card at hand.
CONFIGS = (
    Config(tile(128, 128, 64), warps=4, stages=3),  # two programs a multiprocessor on sm_90
    Config(tile(128, 256, 64), warps=8, stages=3),
    Config(tile(128, 256, 64), warps=8, stages=4),
    Config(tile(128, 128, 64), warps=8, stages=4),
    Config(tile(128, 128, 32), warps=8, stages=3),  # what sm_80's shared memory holds twice
)
_SIZES = {"N": "i32", "F": "i32", "d": "i32"}


BUILDS = (
    *(
        Build(
            f"bf16 {c.tile['BM']}x{c.tile['BN']}x{c.tile['BK']}, {c.warps} warps, {c.stages} stages,"
            f" {'TMA' if tma else 'pointers'}, M = {M}",
            candidates_kernel,
            operand_kinds(c.tile, "bf16", tma)
            | {"b": "*fp32", "keys": "*i32", "dropped": "*i32"}
            | _SIZES,
            {"M": M, "TMA": tma, "PRECISION": "tf32"} | c.tile,
            warps=c.warps,
            stages=c.stages,
            limits=Limits(registers=255, shared=193 * 1024, spills={80: 2}),
            targets=(90, 100) if tma else (80, 90, 100),
            matmul=True,
        )
        for c in CONFIGS
        for tma, M in ((True, 1), (True, 2), (True, 3), (True, 8), (False, 2), (False, 8))
        if (tma and M in (2, 3)) or c is CONFIGS[0] or (c is CONFIGS[-1] and not tma)
    ),
)
