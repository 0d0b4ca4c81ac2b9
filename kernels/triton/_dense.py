"""Dense pre-activations, a part of the rows at a time: what exact paths of any size fall back on."""

import torch
import triton
import triton.language as tl

from trustbench.kernels.sizes import AT_ONCE
from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._launch import Config, chosen, tile
from trustbench.kernels.triton._matmul import place, precision, product


@triton.jit(do_not_specialize=["first", "N"])
def pre_kernel(
    x, W, b, pre, listed, count, first, N, F, d,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    LISTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Dense pre-activations fp32 [N, F] of rows first, first + 1, ... of x, or of those listed."""
    tile_m, tile_n = place(tl.program_id(0), tl.cdiv(N, BM), tl.cdiv(F, BN), GROUP)
    at = tile_m * BM + tl.arange(0, BM)
    inside = at < N
    rows = first + at
    if LISTED:
        total = tl.load(count)
        if first + tile_m * BM >= total:
            return
        inside = inside & (rows < total)
        rows = tl.load(listed + rows, mask=inside, other=0)
    cols = tile_n * BN + tl.arange(0, BN)
    acc = product(x, W, rows, inside, 0, tile_n * BN, d, F, BM, BN, BK, False, PRECISION)
    acc += tl.load(b + cols, mask=cols < F, other=0.0).to(tl.float32)[None, :]
    tl.store(
        pre + at[:, None].to(tl.int64) * F + cols[None, :],
        acc,
        mask=inside[:, None] & (cols < F)[None, :],
    )


def pre_activations(x, W, b, first, rows, listed=None):
    """x W^T + b, fp32 [rows, F], of rows first .. first + rows of x, or of the list."""
    F, d = W.shape
    config = chosen("pre_activations", CONFIGS, x.device, x.element_size(), N=rows, d=d, F=F)
    if precision(x) == "ieee":  # no tensor cores: a smaller tile is enough
        config = IEEE
    pre = torch.empty(rows, F, dtype=torch.float32, device=x.device)
    grid = triton.cdiv(rows, config.tile["BM"]) * triton.cdiv(F, config.tile["BN"])
    pre_kernel[(grid,)](
        x, W, b, pre, *(listed or (None, None)), first, rows, F, d, LISTED=listed is not None,
        PRECISION=precision(x), **config.tile, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return pre


def rows_at_once(F: int) -> int:
    """How many rows of pre-activations are held at one time."""
    return max(AT_ONCE // F, 16)


CONFIGS = (
    Config(tile(128, 128, 32), warps=8, stages=4),
    Config(tile(64, 128, 32), warps=4, stages=4),
)
IEEE = Config(tile(64, 128, 16), warps=8, stages=3)

_SIZES = {"N": "i32", "F": "i32", "d": "i32"}

BUILDS = tuple(
    Build(
        f"{kind} {PRECISION}, {c.tile['BM']}x{c.tile['BN']}, {'listed' if listed else 'all'} rows",
        pre_kernel,
        {"x": f"*{kind}", "W": f"*{kind}", "b": "*fp32", "pre": "*fp32"}
        | {"listed": "*i32" if listed else None, "count": "*i32" if listed else None}
        | {"first": "i32"}
        | _SIZES,
        {"LISTED": listed, "PRECISION": PRECISION} | c.tile,
        warps=c.warps,
        stages=c.stages,
        limits=Limits(registers=212, shared=96 * 1024 + 64),
        matmul=PRECISION == "tf32",
    )
    for kind, PRECISION, c, listed in (
        ("bf16", "tf32", CONFIGS[0], True),
        ("bf16", "tf32", CONFIGS[1], True),
        ("fp32", "tf32", CONFIGS[1], False),
        ("fp32", "ieee", IEEE, False),
    )
)
