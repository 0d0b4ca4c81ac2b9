"""Cases and tolerances that the tests of all ops share."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from trustbench import ops
from trustbench.ops import dispatch
from trustbench.ops.spec import TEST_SHAPES, Shape

ISAS = dispatch.native().isa_names()
DTYPES = [torch.float32, torch.bfloat16]
shapes = pytest.mark.parametrize("shape", TEST_SHAPES, ids=lambda s: "x".join(map(str, s)))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
isas = pytest.mark.parametrize("isa", ISAS)


@contextlib.contextmanager
def running(isa: str, threads: int = 1):
    """The C++ kernels of one instruction set, on so many threads."""
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


def assert_accurate(actual: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The derived tolerance: against the fp64 result `exact`, at most twice the error of the `plain`
    computation in the same precision, plus a rounding of the largest value."""
    assert actual.dtype == plain.dtype and actual.shape == exact.shape
    assert torch.isfinite(actual).all()
    if actual.numel() == 0:
        return
    error = (actual.double() - exact).abs().max()
    budget = 2 * (plain.double() - exact).abs().max()
    budget += 2 * torch.finfo(actual.dtype).eps * exact.abs().max()
    assert error <= budget, f"error {error:.3g}, budget {budget:.3g}"
