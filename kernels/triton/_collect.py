"""A matmul whose epilogue keeps the entries above a bound: no dense pre-activation leaves the chip.

Which entries are kept only the data tells. Every program counts its own, claims as many places in one
list with one atomic, and writes (token, feature, value) there. The list is in the order of arrival;
`_csr` puts it into the order of tokens and features, so no result depends on arrival.

A tile is seen as [BM, BN / 8, 8]: columns of equal number mod 8 are what a thread of the tensor
cores' layout holds, so that splitting the tile into its [BM, 8] slices moves nothing.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._launch import Config, matmul, tile
from trustbench.kernels.triton._matmul import operand_kinds, place, precision, product

MOST = 2**31 - 2**16  # entries: places are 32-bit, and a program may count past the end


class Entries(NamedTuple):
    """Kept entries in the order of arrival; total > len(values): only so many had a place."""

    tokens: torch.Tensor  # [capacity] int32
    features: torch.Tensor  # [capacity] int32
    values: torch.Tensor  # [capacity] fp32
    total: torch.Tensor  # [1] int64


@triton.jit
def _halves(t, BM: tl.constexpr, STEPS: tl.constexpr):
    """(first, second) half of the slices of t [BM, STEPS, 8]."""
    return tl.split(tl.permute(tl.reshape(t, (BM, 2, STEPS // 2, 8)), (0, 2, 3, 1)))


@triton.jit
def _append(
    acc, at, rows, col, bound, bound_step, tokens, features, values, F, capacity,
    BM: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Write what is kept of acc [BM, STEPS, 8] from places `at` [BM, 8] on; the next places."""
    if STEPS == 1:
        value = tl.reshape(acc, (BM, 8))
        feature = col + tl.arange(0, 8)
        floor = tl.load(bound + feature * bound_step, mask=feature < F, other=0.0)
        keep = (value <= floor[None, :]) == 0
        here = keep & (at < capacity)
        tl.store(values + at, value, mask=here)
        tl.store(tokens + at, rows[:, None] + tl.zeros((BM, 8), tl.int32), mask=here)
        tl.store(features + at, feature[None, :] + tl.zeros((BM, 8), tl.int32), mask=here)
        return at + keep.to(tl.int32)
    else:
        low, high = _halves(acc, BM, STEPS)
        at = _append(
            low, at, rows, col, bound, bound_step, tokens, features, values, F, capacity,
            BM, STEPS // 2,
        )  # fmt: skip
        return _append(
            high, at, rows, col + 4 * STEPS, bound, bound_step, tokens, features, values, F, capacity,
            BM, STEPS // 2,
        )  # fmt: skip


@triton.jit(do_not_specialize=["N", "bound_step", "capacity"])
def collect_kernel(
    x, W, b, bound, bound_step, tokens, features, values, total, capacity, N, F, d,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Append the entries of x W^T + b that are not <= bound[feature * bound_step]: NaN is kept."""
    STEPS: tl.constexpr = BN // 8
    tile_m, tile_n = place(tl.program_id(0), tl.cdiv(N, BM), tl.cdiv(F, BN), GROUP)
    rows = tile_m * BM + tl.arange(0, BM)
    cols = tile_n * BN + tl.arange(0, BN)
    acc = product(x, W, rows, rows < N, tile_m * BM, tile_n * BN, d, F, BM, BN, BK, TMA, PRECISION)
    acc += tl.load(b + cols, mask=cols < F, other=0.0).to(tl.float32)[None, :]
    # No bound is below this, so that what lies outside is never kept.
    acc = tl.where((rows < N)[:, None] & (cols < F)[None, :], acc, float("-inf"))
    floor = tl.load(bound + cols * bound_step, mask=cols < F, other=0.0)
    keep = ((acc <= floor[None, :]) == 0).to(tl.int32)
    count = tl.sum(tl.reshape(keep, (BM, STEPS, 8)), axis=1)
    # In one dimension: Triton 3.6 cannot compile the sum along either of the two for sm_100.
    mine = tl.sum(tl.reshape(count, (BM * 8,)), axis=0)
    start = tl.atomic_add(total, mine.to(tl.int64), sem="relaxed")
    before = tl.cumsum(tl.reshape(count, (BM * 8,)), axis=0)
    at = tl.reshape(before, (BM, 8)) - count + tl.minimum(start, capacity).to(tl.int32)
    _append(
        tl.reshape(acc, (BM, STEPS, 8)), at, rows, tile_n * BN, bound, bound_step,
        tokens, features, values, F, capacity, BM, STEPS,
    )  # fmt: skip


def collect(x, W, b, bound, capacity) -> Entries:
    """The entries of x W^T + b above `bound`, fp32 [F] or [1]; places for `capacity` of them.

    x [N, d] and W [F, d] in bf16 or fp32, contiguous; b [F]. Asks the device for nothing.
    """
    (N, d), F, device = x.shape, W.shape[0], x.device
    capacity = min(capacity, MOST)
    tokens, features = (torch.empty(capacity, dtype=torch.int32, device=device) for _ in range(2))
    values = torch.empty(capacity, dtype=torch.float32, device=device)
    total = torch.zeros(1, dtype=torch.int64, device=device)
    config, operands, tma = matmul("collect", CONFIGS, TF32, IEEE, x, W)
    grid = triton.cdiv(N, config.tile["BM"]) * triton.cdiv(F, config.tile["BN"])
    if grid:
        collect_kernel[(grid,)](
            *operands, b, bound, int(len(bound) > 1), tokens, features, values, total, capacity,
            N, F, d, TMA=tma, PRECISION=precision(x),
            **config.tile, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return Entries(tokens, features, values, total)


# The first is the default; `trustbench tune` times them all on the card at hand.
CONFIGS = (
    Config(tile(128, 128, 64), warps=4, stages=3),  # two programs a multiprocessor on sm_90
    Config(tile(128, 128, 64), warps=8, stages=4),
    Config(tile(128, 128, 32), warps=8, stages=3),  # what sm_80's shared memory holds twice
)
TF32 = Config(tile(64, 128, 32), warps=4, stages=3)
IEEE = Config(tile(64, 64, 16), warps=8, stages=3)

_LIST = {"b": "*fp32", "bound": "*fp32", "bound_step": "i32", "tokens": "*i32", "features": "*i32"}
_LIST |= {"values": "*fp32", "total": "*i64", "capacity": "i32", "N": "i32", "F": "i32", "d": "i32"}

BUILDS = tuple(
    Build(
        f"{kind} {PRECISION}, {c.tile['BM']}x{c.tile['BN']}x{c.tile['BK']}, {c.warps} warps,"
        f" {'TMA' if tma else 'pointers'}",
        collect_kernel,
        operand_kinds(c.tile, kind, tma) | _LIST,
        {"TMA": tma, "PRECISION": PRECISION} | c.tile,
        warps=c.warps,
        stages=c.stages,
        limits=Limits(
            registers=255, shared=132 * 1024, spills={80: 8, 100: 30} if c.warps == 4 else {}
        ),
        targets=(90, 100) if tma else (80, 90, 100),
        matmul=PRECISION == "tf32",
    )
    for kind, PRECISION, c, tma in (
        *(("bf16", "tf32", c, tma) for c in CONFIGS for tma in (True, False)),
        ("fp32", "tf32", TF32, False),
        ("fp32", "ieee", IEEE, False),
    )
)
