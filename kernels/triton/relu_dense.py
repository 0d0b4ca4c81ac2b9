"""relu_dense: all activations of a ReLU, with the sums over tokens that L1 and L0 need.

For codes with thousands of entries a token (see trustbench.steps.dense): bias, ReLU and both sums
happen in the matmul's epilogue.
"""

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._launch import Config, matmul, tile
from trustbench.kernels.triton._matmul import operand_kinds, place, precision, product


@triton.jit(do_not_specialize=["N"])
def dense_kernel(
    x, W, b, acts, mass, fired, N, F, d,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acts = relu(x W^T + b) [N, F]; rows of mass and fired [tiles of N, F]: sums over the tile."""
    tile_m, tile_n = place(tl.program_id(0), tl.cdiv(N, BM), tl.cdiv(F, BN), GROUP)
    rows = tile_m * BM + tl.arange(0, BM)
    cols = tile_n * BN + tl.arange(0, BN)
    acc = product(x, W, rows, rows < N, tile_m * BM, tile_n * BN, d, F, BM, BN, BK, TMA, PRECISION)
    acc += tl.load(b + cols, mask=cols < F, other=0.0).to(tl.float32)[None, :]
    inside = (rows < N)[:, None] & (cols < F)[None, :]
    acc = tl.where((acc <= 0) | (inside == 0), 0.0, acc)  # a NaN stays, so that it is seen
    to = tile_m.to(tl.int64) * F + cols
    tl.store(mass + to, tl.sum(acc, axis=0), mask=cols < F)
    kept = acc.to(acts.dtype.element_ty)
    tl.store(fired + to, tl.sum((kept > 0).to(tl.int32), axis=0), mask=cols < F)
    tl.store(acts + rows[:, None].to(tl.int64) * F + cols[None, :], kept, mask=inside)


def relu_dense(x, W, b):
    """(acts [N, F] in x's dtype, sums over tokens fp32 [F], how many are > 0 int32 [F])."""
    (N, d), F = x.shape, W.shape[0]
    config, operands, tma = matmul("relu_dense", CONFIGS, TF32, IEEE, x, W)
    tiles = triton.cdiv(N, config.tile["BM"])
    acts = torch.empty(N, F, dtype=x.dtype, device=x.device)
    mass = torch.empty(tiles, F, dtype=torch.float32, device=x.device)
    fired = torch.empty(tiles, F, dtype=torch.int32, device=x.device)
    if N:
        dense_kernel[(tiles * triton.cdiv(F, config.tile["BN"]),)](
            *operands, b, acts, mass, fired, N, F, d, TMA=tma, PRECISION=precision(x),
            **config.tile, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return acts, mass.sum(0), fired.sum(0, dtype=torch.int32)


# The first is the default; `trustbench tune` times them all on the card at hand.
CONFIGS = (
    Config(tile(128, 256, 64), warps=8, stages=3),
    Config(tile(128, 256, 64), warps=8, stages=4),
    Config(tile(128, 128, 64), warps=4, stages=3),
    Config(tile(128, 128, 32), warps=8, stages=3),  # what sm_80's shared memory holds twice
)
TF32 = Config(tile(64, 128, 32), warps=4, stages=3)
IEEE = Config(tile(64, 128, 16), warps=8, stages=3)

BUILDS = tuple(
    Build(
        f"{kind} {PRECISION}, {c.tile['BM']}x{c.tile['BN']}x{c.tile['BK']}, {c.warps} warps,"
        f" {c.stages} stages, {'TMA' if tma else 'pointers'}",
        dense_kernel,
        operand_kinds(c.tile, kind, tma)
        | {"b": "*fp32", "acts": f"*{kind}", "mass": "*fp32", "fired": "*i32"}
        | {"N": "i32", "F": "i32", "d": "i32"},
        {"TMA": tma, "PRECISION": PRECISION} | c.tile,
        warps=c.warps,
        stages=c.stages,
        # On sm_100 the tile comes back from tensor memory beside what is stored of it, and the large
        # tiles spill, once a program; `trustbench tune` finds the last configuration if it is faster.
        limits=Limits(
            registers=255, shared=200 * 1024, spills={80: 18, 100: 290} if c in CONFIGS[:3] else {}
        ),
        targets=(90, 100) if tma else (80, 90, 100),
        matmul=PRECISION == "tf32",
    )
    for kind, PRECISION, c, tma in (
        *(("bf16", "tf32", c, tma) for c in CONFIGS for tma in (True, False)),
        ("fp32", "tf32", TF32, False),
        ("fp32", "ieee", IEEE, False),
    )
    if not (c.stages == 4 and not tma)
)
