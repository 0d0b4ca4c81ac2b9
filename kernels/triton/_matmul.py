"""The tile that every encoder starts with: x W^T in fp32 sums, from bf16, TF32 or fp32 operands."""

import torch
import triton
import triton.language as tl

# Triton's interpreter holds bf16 as 16-bit integers and multiplies those. As fp32 the products are
# exact, as they are in the tensor cores.
INTERPRETED = triton.knobs.runtime.interpret
_WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in fp32."""
    if _WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def place(pid, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Tile (m, n) of program `pid`: GROUP tiles of m share a tile of n while it is in L2."""
    per_group = GROUP * tiles_n
    first = (pid // per_group) * GROUP
    size = tl.minimum(tiles_m - first, GROUP)
    return first + (pid % per_group) % size, (pid % per_group) // size


@triton.jit
def product(
    x, W, rows, in_rows, row0, col0, d, F,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """fp32 [BM, BN]: x[rows] @ W[col0 : col0 + BN]^T.

    TMA: x and W are tensor descriptors, and the rows are row0, row0 + 1, ... (out of range: zero).
    Otherwise they are pointers, `rows` [BM] may be any rows, and those outside `in_rows` are zero.
    """
    acc = tl.zeros((BM, BN), tl.float32)
    if TMA:
        for at in range(0, d, BK):
            acc = dot(x.load([row0, at]), W.load([col0, at]).T, acc, PRECISION)
    else:
        cols = col0 + tl.arange(0, BN)
        inner = tl.arange(0, BK)
        x_at = x + rows[:, None].to(tl.int64) * d + inner[None, :]
        W_at = W + cols[None, :].to(tl.int64) * d + inner[:, None]
        for at in range(0, d, BK):
            left = inner < d - at
            a = tl.load(x_at + at, mask=in_rows[:, None] & left[None, :], other=0.0)
            b = tl.load(W_at + at, mask=(cols < F)[None, :] & left[:, None], other=0.0)
            acc = dot(a, b, acc, PRECISION)
    return acc


def precision(x: torch.Tensor) -> str:
    """How fp32 operands are multiplied: as torch.set_float32_matmul_precision says."""
    fast = x.dtype == torch.bfloat16 or torch.get_float32_matmul_precision() != "highest"
    return "tf32" if fast else "ieee"


def operand_kinds(tile: dict[str, int], kind: str, tma: bool) -> dict[str, str]:
    """How x and W are handed to `product`, for the ahead-of-time guard."""
    if not tma:
        return {"x": f"*{kind}", "W": f"*{kind}"}
    BM, BN, BK = tile["BM"], tile["BN"], tile["BK"]
    return {"x": f"tensordesc<{kind}[{BM},{BK}]>", "W": f"tensordesc<{kind}[{BN},{BK}]>"}
