"""Every op over the shared table of shapes: time, and the share of its floor.

    pytest benchmarks/test_ops.py

The floor of an op is the larger of its bytes over the measured copy bandwidth and its FLOPs over the
measured fp32 matmul rate of torch. Above 100 % means that the kernel beats torch's own matmul.
"""

from __future__ import annotations

import time
from functools import cache

import pytest
import torch

from trustbench import ops
from trustbench.ops.spec import BENCHMARK_SHAPES, OpSpec, Shape


@cache
def ceilings() -> tuple[float, float]:
    """(bytes a second of a copy, FLOPs a second of an fp32 matmul), medians of five."""

    def median(function) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return sorted(times)[2]

    a, b = torch.randn(50_000_000), torch.empty(50_000_000)
    x, W = torch.randn(2048, 1024), torch.randn(8192, 1024)
    return 8 * len(a) / median(lambda: b.copy_(a)), 2 * x.numel() * len(W) / median(lambda: x @ W.T)


def spec_of(name: str) -> OpSpec:
    import importlib

    return importlib.import_module(f"trustbench.ops.{name}").SPEC


def calls(s: Shape) -> dict:
    """Each op on random input of one shape."""
    x, grad = torch.randn(s.N, s.d), torch.randn(s.N, s.d)
    W = torch.nn.functional.normalize(torch.randn(s.F, s.d), dim=1)
    b = torch.zeros(s.F)
    code = ops.encode_topk(x, W, b, s.k)
    m, v, gradW = torch.zeros_like(W), torch.zeros_like(W), torch.randn_like(W)
    high = torch.full((s.F,), 3.0)  # about one entry in a thousand
    return {
        "encode_topk": lambda: ops.encode_topk(x, W, b, s.k),
        "encode_relu": lambda: ops.encode_relu(x, W, b, high),
        "encode_batchtopk": lambda: ops.encode_batchtopk(x, W, b, s.k),
        "decode": lambda: ops.decode(code.values, code.indices, W),
        "code_grad": lambda: ops.code_grad(grad, code.indices, W),
        "transpose_code": lambda: ops.transpose_code(code.indices, s.F),
        "weight_grad": lambda: ops.weight_grad(code.values, code.indices, x, s.F),
        "adam": lambda: ops.adam_(W, gradW, m, v, step=1, lr=1e-6, unit_norm=True),
    }


NAMES = list(calls(Shape(8, 8, 16, 2)))


@pytest.mark.parametrize("shape", BENCHMARK_SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("name", NAMES)
def test_op(benchmark, name, shape):
    call = calls(shape)[name]
    benchmark.pedantic(call, rounds=7, warmup_rounds=1)
    bandwidth, rate = ceilings()
    spec = spec_of(name)
    floor = max(spec.bytes(shape) / bandwidth, spec.flops(shape) / rate)
    benchmark.extra_info["floor_ms"] = 1e3 * floor
    benchmark.extra_info["share_of_floor"] = floor / benchmark.stats.stats.median
