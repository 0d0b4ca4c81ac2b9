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
        torch.ops.trustbench.adam.default, (p, g, m, v, 1, 1e-3, 0.9, 0.999, 1e-8, True)
    )
    with pytest.raises(InputError, match="step=0: expected an integer >= 1"):
        ops.adam_(p, g, m, v, step=0, **OPTIONS)
    with pytest.raises(InputError, match=r"grad.shape=\[5, 6\]: expected \[5, 7\]"):
        ops.adam_(p, g[:, :6], m, v, step=1, **OPTIONS)
    with pytest.raises(InputError, match="contiguous"):
        ops.adam_(p.T, g.T, m.T, v.T, step=1, **OPTIONS)
