"""code_grad: one dot product an entry."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import (
    as_csr,
    assert_accurate,
    cells,
    entries,
    implementations,
    isas,
    malformed_codes,
    running,
    strided,
    topk_code,
)
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.spec import Shape


@cells
@pytest.mark.parametrize("layout", ["topk", "csr"])
def test_matches_the_definition(isa, shape, dtype, layout):
    values, indices = topk_code(shape, dtype)
    W, grad = torch.randn(shape.F, shape.d).to(dtype), torch.randn(shape.N, shape.d).to(dtype)
    offsets = None
    if layout == "csr":
        offsets, indices, _ = as_csr(values, indices)
    plain = entries(grad.float() @ W.float().T, indices, offsets).to(dtype)
    exact = entries(grad.double() @ W.double().T, indices, offsets)
    with running(isa, threads=2):
        assert_accurate(ops.code_grad(grad, indices, W, offsets), plain, exact)


def test_opcheck():
    _, indices = topk_code(Shape(37, 130, 515, 9), torch.float32)
    W, grad = torch.randn(515, 130), torch.randn(37, 130)
    torch.library.opcheck(torch.ops.trustbench.code_grad.default, (grad, indices, W, None))


@isas
def test_strided_offsets(isa):
    values, indices = topk_code(Shape(37, 130, 515, 9), torch.float32)
    offsets, indices, values = as_csr(values, indices)
    W, grad = torch.randn(515, 130), torch.randn(37, 130)
    with running(isa):
        expected = ops.code_grad(grad, indices, W, offsets)
        assert torch.equal(ops.code_grad(grad, indices, W, strided(offsets)), expected)


@implementations
def test_a_malformed_code_is_refused(isa):
    shape = Shape(37, 130, 515, 9)
    for indices, offsets, message in malformed_codes(shape)[:-1]:
        with running(isa), pytest.raises(InputError, match=message):
            ops.code_grad(torch.ones(37, 130), indices, torch.ones(515, 130), offsets)
