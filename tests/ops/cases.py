"""Cases and tolerances that the tests of all ops share."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from trustbench import ops
from trustbench.ops import dispatch
from trustbench.ops.spec import TEST_SHAPES, Shape

ISAS = dispatch.native().isa_names()
DTYPES = [torch.float32, torch.bfloat16]
FILLING = Shape(2048, 1024, 32768, 64)  # fills a GPU: for Triton there (see conftest.py)
SHAPES = [*TEST_SHAPES, *([FILLING] if torch.cuda.is_available() else [])]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
# All kernels: C++ for every instruction set, and Triton (in its interpreter where there is no GPU).
isas = pytest.mark.parametrize("isa", [*ISAS, "triton"])
# All that can compute an op; tests over it compare with dense PyTorch, not with the reference.
implementations = pytest.mark.parametrize("isa", ["reference", *ISAS, "triton"])


def _cells() -> list[Any]:
    """Every implementation, dtype and shape; in Triton's interpreter, where a cell takes seconds,
    bf16 goes over every other shape: no tokens, ragged tiles, as many entries as features."""
    return [
        pytest.param(isa, dtype, shape, id=f"{kind}-{'x'.join(map(str, shape))}-{isa}")
        for dtype, kind in zip(DTYPES, ("fp32", "bf16"), strict=True)
        for i, shape in enumerate(TEST_SHAPES)
        for isa in ("reference", *ISAS, "triton")
        if isa != "triton" or torch.cuda.is_available() or kind == "fp32" or i % 2
    ]


cells = pytest.mark.parametrize(("isa", "dtype", "shape"), _cells())


@contextlib.contextmanager
def running(isa: str, threads: int = 1):
    """The C++ kernels of one instruction set on so many threads, Triton, or the reference."""
    if isa in ("reference", "triton"):
        with ops.use(isa):
            yield
        return
    native, before, count = dispatch.native(), dispatch.native().isa(), torch.get_num_threads()
    native.set_isa(isa)
    torch.set_num_threads(threads)
    try:
        with ops.use("cpp"):
            yield
    finally:
        native.set_isa(before)
        torch.set_num_threads(count)


def encoder_inputs(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, d], W_enc [F, d], b_enc [F]: pre-activations of variance about 1."""
    x = torch.randn(shape.N, shape.d)
    W = torch.randn(shape.F, shape.d) / shape.d**0.5
    return x.to(dtype), W.to(dtype), (0.1 * torch.randn(shape.F)).to(dtype)


def topk_code(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """values and indices [N, k]: distinct features a token, a fifth of the values zero."""
    scores = torch.rand(shape.N, shape.F)
    indices = scores.argsort(1)[:, : shape.k].to(torch.int32)
    values = torch.rand(shape.N, shape.k) * (torch.rand(shape.N, shape.k) > 0.2)
    return values.to(dtype), indices


def as_csr(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same code with row offsets, of rows of different lengths: (offsets, indices, values)."""
    n, k = values.shape
    kept = torch.rand(n, k) > 0.3
    offsets = torch.zeros(n + 1, dtype=torch.int64)
    offsets[1:] = kept.sum(1).cumsum(0)
    return offsets, indices[kept], values[kept]


def plain_pre(x: Tensor, W: Tensor, b: Tensor, matmul_dtype: torch.dtype | None = None) -> Tensor:
    """Pre-activations [N, F] by plain fp32 PyTorch, of operands rounded to `matmul_dtype`."""
    x, W = (t.to(matmul_dtype or t.dtype).float() for t in (x, W))
    return torch.nn.functional.linear(x, W, b.float())


def exact_pre(x: Tensor, W: Tensor, b: Tensor, matmul_dtype: torch.dtype | None = None) -> Tensor:
    """The same in fp64."""
    x, W = (t.to(matmul_dtype or t.dtype).double() for t in (x, W))
    return torch.nn.functional.linear(x, W, b.double())


def dense(values: Tensor, indices: Tensor, d_sae: int, offsets: Tensor | None = None) -> Tensor:
    """A code as the matrix [N, F] it stands for."""
    if offsets is None:
        return values.new_zeros(len(values), d_sae).scatter(1, indices.long(), values)
    out = values.new_zeros(len(offsets) - 1, d_sae)
    for n, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        out[n, indices[start:end].long()] = values[start:end]
    return out


def entries(matrix: Tensor, indices: Tensor, offsets: Tensor | None = None) -> Tensor:
    """What [N, F] holds at every entry of a code."""
    if offsets is None:
        return matrix.gather(1, indices.long())
    rows = [matrix[n, indices[offsets[n] : offsets[n + 1]].long()] for n in range(len(offsets) - 1)]
    return torch.cat([matrix.new_empty(0), *rows])


def malformed_codes(shape: Shape) -> list[tuple[Tensor, Tensor | None, str]]:
    """(indices, row_offsets, the error they must give): what a kernel would follow out of memory."""
    _, indices = topk_code(shape, torch.float32)
    high, low = indices.clone(), indices.clone()
    high[-1, -1], low[0, 0] = shape.F, -1
    flat, end = indices.flatten(), indices.numel()
    offsets = torch.linspace(0, end, shape.N + 1).long()
    past, late, descending = offsets.clone(), offsets.clone(), offsets.clone()
    past[-1], late[0], descending[1] = end + 1, 1, end
    return [
        (high, None, f"indices={shape.F}: expected integers in"),
        (low, None, "indices=-1: expected integers in"),
        (flat, past, f"row_offsets='0 ... {end + 1}'"),
        (flat, late, "row_offsets='1 ..."),
        (flat, descending, f"ascending from 0 to nnz={end}"),
        (flat, offsets.int(), r"row_offsets\.dtype=torch\.int32"),
        (flat[:0], offsets[:0], r"row_offsets\.shape=\[0\]"),
    ]


def strided(offsets: Tensor) -> Tensor:
    """Equal offsets that do not lie side by side in memory."""
    return torch.stack([offsets, offsets + 10**9], 1)[:, 0]


def assert_accurate(actual: Tensor, plain: Tensor, exact: Tensor, eps: float = 0.0) -> None:
    """The derived tolerance: against the fp64 result `exact`, at most twice the error of the `plain`
    computation in the same precision, plus a rounding (of `eps`, if it is more than the dtype's) of
    the largest value."""
    assert actual.dtype == plain.dtype and actual.shape == exact.shape
    assert torch.isfinite(actual).all()
    if actual.numel() == 0:
        return
    error = (actual.double() - exact).abs().max()
    budget = 2 * (plain.double() - exact).abs().max()
    budget += 2 * max(torch.finfo(actual.dtype).eps, eps) * exact.abs().max()
    assert error <= budget, f"error {error:.3g}, budget {budget:.3g}"
