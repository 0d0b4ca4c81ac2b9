"""Random inputs of one shape, made when an op first asks for them, and the test all ops share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.roofline import Floor
from benchmarks.shapes import label
from benchmarks.suite import MEASURED, Suite, interleaved
from benchmarks.workers import Measured
from trustbench import __version__, ops
from trustbench.ops.sparse_adam import Moments, Weights
from trustbench.ops.spec import Shape

SUBJECT = "ops"


class Inputs:
    """What the ops work on, in fp32."""

    def __init__(self, shape: Shape) -> None:
        self.N, self.d, self.F, self.k = shape

    @cached_property
    def x(self) -> Tensor:
        return torch.randn(self.N, self.d)

    @cached_property
    def grad(self) -> Tensor:
        """dL/dx_hat [N, d]."""
        return torch.randn(self.N, self.d)

    @cached_property
    def W(self) -> Tensor:
        """[F, d], rows of unit norm."""
        return torch.nn.functional.normalize(torch.randn(self.F, self.d), dim=1)

    @cached_property
    def grad_W(self) -> Tensor:
        """dL/dW [F, d]."""
        return torch.randn(self.F, self.d)

    @cached_property
    def b(self) -> Tensor:
        return torch.zeros(self.F)

    @cached_property
    def code(self) -> ops.TopKCode:
        return ops.encode_topk(self.x, self.W, self.b, self.k)

    @cached_property
    def long(self) -> Tensor:
        """The code's indices as torch's own functions want them."""
        return self.code.indices.long()

    @cached_property
    def by_feature(self) -> ops.FeatureCode:
        return ops.transpose_code(self.code.indices, self.F)

    @cached_property
    def weights(self) -> Weights:
        return Weights(self.W.clone(), self.W.clone(), self.b.clone())

    @cached_property
    def moments(self) -> Moments:
        return Moments.zeros_like(self.weights)

    @cached_property
    def dense(self) -> Tensor:
        """The code as [N, F]."""
        acts = torch.zeros(self.N, self.F)
        return acts.scatter_(1, self.long, self.code.values)

    @cached_property
    def adam_of_one(self) -> torch.optim.Optimizer:
        return _adam(self.W)

    @cached_property
    def adam_of_an_sae(self) -> torch.optim.Optimizer:
        return _adam(self.W, self.W, self.b)


def _adam(*like: Tensor) -> torch.optim.Optimizer:
    """torch's fastest Adam, on parameters that have their gradients."""
    parameters = [w.clone().requires_grad_() for w in like]
    for p in parameters:
        p.grad = torch.randn_like(p)
    return torch.optim.Adam(parameters, lr=1e-6, fused=True)


Call = Callable[[Inputs], Any]
_CONTENDERS: dict[str, Mapping[str, Call]] = {}  # of every op whose file was read


def op_test(op: str, contenders: Mapping[str, Call]) -> Callable[..., None]:
    """A test of one op: its contenders interleaved, against its floor.

    Ops are quick, and a machine can be slow for half a minute: each round goes through all of them,
    so that the rounds of one op lie as far apart as there is time.

    Parameters
    ----------
    op : str
        A file of trustbench/ops, whose SPEC says the floor.
    contenders : {name: what runs}; "trustbench" is the op
    """
    spec = importlib.import_module(f"trustbench.ops.{op}").SPEC
    _CONTENDERS[op] = contenders

    @MEASURED
    @pytest.mark.parametrize("contender", contenders)
    def test(case: Shape, contender: str, suite: Suite, benchmark: Any) -> None:
        def measure() -> dict[tuple[str, str], list[float]]:
            inputs = Inputs(case)
            calls = {
                (name, who): partial(call, inputs)
                for name, of_one in _CONTENDERS.items()
                for who, call in of_one.items()
            }
            return interleaved(calls, suite.scale.rounds)

        seconds = suite.once((SUBJECT, case), measure)[op, contender]
        version = __version__ if contender == "trustbench" else torch.__version__
        row = {"case": f"{op}: {label(case)}", "contender": contender}
        floor = Floor(spec.bytes(case), spec.flops(case))
        suite.report(benchmark, SUBJECT, row, Measured(seconds, version, None, {}), floor)

    return test
