"""relu_dense: activations and their sums over tokens, against dense PyTorch."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import assert_accurate, dtypes, encoder_inputs, exact_pre, plain_pre, running
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.spec import Shape


@pytest.mark.parametrize("isa", ["reference", "triton"])
@pytest.mark.parametrize(
    "shape", [Shape(1, 1, 1, 1), Shape(0, 7, 9, 1), Shape(140, 24, 260, 1), Shape(9, 33, 7, 1)]
)
@dtypes
def test_matches_dense_pytorch(isa, shape, dtype):
    x, W, b = encoder_inputs(shape, dtype)
    with running(isa):
        acts, mass, fired = ops.relu_dense(x, W, b)
    plain, exact = plain_pre(x, W, b).relu(), exact_pre(x, W, b).relu()
    assert_accurate(acts, plain.to(dtype), exact)
    assert mass.dtype == torch.float32
    # A sum of N activations has at most N times the error of one.
    assert_accurate(mass, plain.sum(0), exact.sum(0), eps=max(shape.N, 1) * 2**-22)
    assert torch.equal(fired, (acts > 0).sum(0).int())


@pytest.mark.parametrize("isa", ["reference", "triton"])
def test_a_nan_stays(isa):
    x, W, b = encoder_inputs(Shape(5, 6, 7, 1), torch.float32)
    x[3, 2] = float("nan")
    with running(isa):
        acts, mass, _ = ops.relu_dense(x, W, b)
    assert acts[3].isnan().all() and mass.isnan().all() and acts[2].isfinite().all()


def test_opcheck_and_bad_input():
    x, W, b = encoder_inputs(Shape(5, 6, 7, 1), torch.float32)
    torch.library.opcheck(torch.ops.trustbench.relu_dense.default, (x, W, b))
    with ops.use("cpp"), pytest.raises(InputError, match="relu_dense has no C\\+\\+ kernel"):
        ops.relu_dense(x, W, b)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        ops.relu_dense(x.requires_grad_(), W, b).acts.sum().backward()
