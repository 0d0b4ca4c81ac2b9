"""adam_: torch.optim.Adam's arithmetic, and the unit-norm constraint."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import ISAS, isas, running
from trustbench import ops
from trustbench.errors import InputError

OPTIONS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6}


@isas
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (130, 33), (70, 64)])
def test_equals_torch_adam_step_after_step(isa, size):
    mine = torch.randn(size)
    theirs = torch.nn.Parameter(mine.clone())
    optimizer = torch.optim.Adam([theirs], lr=1e-2, betas=(0.9, 0.99), eps=1e-6)
    m, v = torch.zeros(size), torch.zeros(size)
    for step in range(1, 21):
        grad = torch.randn(size) * (torch.rand(size[0], 1) > 0.3)  # some rows get no gradient
        theirs.grad = grad.clone()
        optimizer.step()
        with running(isa, threads=2):
            ops.adam_(mine, grad, m, v, step=step, **OPTIONS)
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-5, atol=1e-6)


@isas
def test_unit_norm_projects_and_renormalises(isa):
    start = torch.nn.functional.normalize(torch.randn(70, 33), dim=1)
    start[4] = 0  # a row without a direction stays finite
    grad = torch.randn(70, 33)
    results = []
    for context in (ops.use("reference"), running(isa, threads=2)):
        param, m, v = start.clone(), torch.zeros(70, 33), torch.zeros(70, 33)
        with context:
            for step in (1, 2, 3):
                ops.adam_(param, grad, m, v, step=step, unit_norm=True, **OPTIONS)
        results.append((param, m, v))
        torch.testing.assert_close(param.norm(dim=1), torch.ones(70))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6)
    # The first step's gradient has no part along the row.
    param, m, v = start.clone(), torch.zeros(70, 33), torch.zeros(70, 33)
    ops.adam_(param, grad, m, v, step=1, unit_norm=True, **OPTIONS)
    torch.testing.assert_close((m * start).sum(1), torch.zeros(70), atol=1e-6, rtol=0)


def test_same_bits_on_any_number_of_threads():
    start, grad = torch.randn(300, 40), torch.randn(300, 40)
    results = []
    for threads in (1, 4):
        param, m, v = start.clone(), torch.zeros(300, 40), torch.zeros(300, 40)
        with running(ISAS[0], threads):
            ops.adam_(param, grad, m, v, step=1, unit_norm=True, **OPTIONS)
        results.append(param)
    assert torch.equal(*results)


def test_opcheck_and_bad_input():
    p, g, m, v = (torch.rand(5, 7) for _ in range(4))
    torch.library.opcheck(
        torch.ops.trustbench.adam.default, (p, g, m, v, None, None, 1, 1e-3, 0.9, 0.999, 1e-8, True)
    )
    with pytest.raises(InputError, match="step=0: expected an integer >= 1"):
        ops.adam_(p, g, m, v, step=0, **OPTIONS)
    with pytest.raises(InputError, match="contiguous"):
        ops.adam_(p.T, g.T, m.T, v.T, step=1, **OPTIONS)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unit_norm", [True, False])
def test_scalars_on_the_device_have_one_definition(kind, unit_norm):
    """bf16 moments too: rounded by chance, with the same chance."""
    param, grad = torch.nn.functional.normalize(torch.randn(5, 40)), torch.randn(5, 40)
    scalars = ops.step_scalars(3, 1e-2, 0.9, 0.999, scale=0.7)
    results = []
    for name in ("reference", "triton"):
        p, copy = param.clone(), torch.zeros(5, 40, dtype=torch.bfloat16)
        m, v = torch.full((5, 40), 0.3).to(kind), torch.full((5, 40), 0.2).to(kind)
        with ops.use(name):
            for number in (1, 2):
                scalars[4] = number
                ops.adam_(p, grad, m, v, unit_norm=unit_norm, scalars=scalars, copy=copy)
        results.append((p, m.float(), v.float(), copy.float()))
    for mine, theirs, tolerance in zip(*results, (2**-20, 2**-7, 2**-7, 2**-7), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=2**-20)
    if kind == torch.bfloat16:  # nearly all of them the same bits: sums may differ in the last
        assert (results[0][2] == results[1][2]).float().mean() > 0.98
    before = param.clone()
    scalars[3] = float("nan")
    for name in ("reference", "triton"):
        with ops.use(name):
            ops.adam_(before, grad, m, v, scalars=scalars)
    assert torch.equal(before, param)
    with pytest.raises(NotImplementedError, match="for the Triton kernels"):
        ops.adam_(param, grad, torch.zeros(5, 40), torch.zeros(5, 40), scalars=scalars)
    with pytest.raises(InputError, match="copy='a tensor': expected None without scalars"):
        ops.adam_(param, grad, torch.zeros(5, 40), torch.zeros(5, 40), copy=copy)
