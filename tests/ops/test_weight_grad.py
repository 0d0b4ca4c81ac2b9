"""weight_grad: sparse weight gradients in token order."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import (
    ISAS,
    as_csr,
    assert_accurate,
    cells,
    dense,
    implementations,
    malformed_codes,
    running,
    topk_code,
)
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.spec import Shape


@cells
@pytest.mark.parametrize("layout", ["topk", "csr"])
def test_matches_the_definition(isa, shape, dtype, layout):
    coefs, indices = topk_code(shape, dtype)
    source = torch.randn(shape.N, shape.d).to(dtype)
    offsets = None
    if layout == "csr":
        offsets, indices, coefs = as_csr(coefs, indices)
    acts = dense(coefs, indices, shape.F, offsets)
    plain = [t.to(dtype) for t in (acts.float().T @ source.float(), acts.float().sum(0))]
    exact = [acts.double().T @ source.double(), acts.double().sum(0)]
    with running(isa, threads=2):
        found = ops.weight_grad(coefs, indices, source, shape.F, offsets)
    for a, p, e in zip(found, plain, exact, strict=True):
        assert_accurate(a, p, e)


def test_opcheck():
    coefs, indices = topk_code(Shape(37, 130, 515, 9), torch.float32)
    source = torch.randn(37, 130)
    torch.library.opcheck(
        torch.ops.trustbench.weight_grad.default, (coefs, indices, source, 515, None)
    )


@implementations
def test_an_entry_of_coefficient_zero_contributes_nothing(isa):
    coefs, indices = torch.tensor([[2.0], [0.0]]), torch.zeros(2, 1, dtype=torch.int32)
    source = torch.tensor([[3.0], [float("nan")]])
    with running(isa):
        dW, db = ops.weight_grad(coefs, indices, source, 1)
    assert dW.tolist() == [[6.0]] and db.tolist() == [2.0]


def test_same_bits_on_any_number_of_threads():
    coefs, indices = topk_code(Shape(200, 33, 300, 20), torch.float32)
    source = torch.randn(200, 33)
    with running(ISAS[0], threads=1):
        one = ops.weight_grad(coefs, indices, source, 300)
    with running(ISAS[0], threads=5):
        many = ops.weight_grad(coefs, indices, source, 300)
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


@implementations
def test_a_malformed_code_is_refused(isa):
    shape = Shape(37, 130, 515, 9)
    for indices, offsets, message in malformed_codes(shape)[:-1]:
        with running(isa), pytest.raises(InputError, match=message):
            ops.weight_grad(torch.ones(indices.shape), indices, torch.ones(37, 130), 515, offsets)
