"""reconstruct: the residual and its squared norm, against dense matrices and against autograd."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import (
    as_csr,
    assert_accurate,
    cells,
    dense,
    dtypes,
    implementations,
    isas,
    malformed_codes,
    running,
    topk_code,
)
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.spec import Shape

ODD = Shape(37, 130, 515, 9)


def inputs(shape, dtype, layout):
    values, indices = topk_code(shape, dtype)
    offsets = None
    if layout == "csr":
        offsets, indices, values = as_csr(values, indices)
    W, b = torch.randn(shape.F, shape.d).to(dtype), torch.randn(shape.d).to(dtype)
    return values, indices, W, b, torch.randn(shape.N, shape.d).to(dtype), offsets


@cells
@pytest.mark.parametrize("layout", ["topk", "csr"])
def test_matches_the_definition(isa, shape, dtype, layout):
    values, indices, W, b, x, offsets = inputs(shape, dtype, layout)
    acts = dense(values, indices, shape.F, offsets)

    def error(wide):
        return acts.to(wide) @ W.to(wide) + b.to(wide) - x.to(wide)

    with running(isa, threads=2):
        found, squared = ops.reconstruct(values, indices, W, b, x, offsets)
    plain, exact = error(torch.float32).to(dtype), error(torch.float64)
    assert_accurate(found, plain, exact)
    assert squared.dtype == torch.float32
    assert_accurate(squared, plain.float().square().sum(1), exact.square().sum(1))


@implementations
@dtypes
@pytest.mark.parametrize("layout", ["topk", "csr"])
@pytest.mark.parametrize("of", ["squared", "error", "both"])
def test_gradients_are_those_of_dense_matrices(isa, dtype, layout, of):
    shape = Shape(13, 33, 70, 5)
    values, indices, W, b, x, offsets = inputs(shape, dtype, layout)
    tensors = [values, W, b, x]
    weight, direction = torch.rand(shape.N), torch.randn(shape.N, shape.d)

    def total(error, squared):
        loss = 0.0
        if of != "error":
            loss = loss + (weight.to(squared.dtype) * squared).sum()
        if of != "squared":
            loss = loss + (direction.to(error.dtype) * error).sum()
        return loss

    with running(isa):
        mine = [t.clone().requires_grad_() for t in tensors]
        error, squared = ops.reconstruct(mine[0], indices, *mine[1:], offsets)
        found = torch.autograd.grad(total(error, squared), mine)

    def plain(wide):
        wider = [t.to(wide).requires_grad_() for t in tensors]
        acts = dense(wider[0], indices, shape.F, offsets)
        error = acts @ wider[1] + wider[2] - wider[3]
        return torch.autograd.grad(total(error, error.square().sum(1)), wider)

    for a, p, e in zip(found, plain(dtype), plain(torch.float64), strict=True):
        assert_accurate(a, p, e)


@pytest.mark.parametrize("layout", ["topk", "csr"])
def test_gradcheck_in_fp64(layout):
    values, indices, W, b, x, offsets = inputs(Shape(4, 5, 12, 3), torch.float64, layout)
    torch.autograd.gradcheck(
        lambda v, w, b, x: ops.reconstruct(v, indices, w, b, x, offsets),
        tuple(t.requires_grad_() for t in (values, W, b, x)),
    )


def test_opcheck_and_compile():
    values, indices, W, b, x, _ = inputs(ODD, torch.float32, "topk")
    op = torch.ops.trustbench.reconstruct.default
    tensors = [t.requires_grad_() for t in (values, W, b, x)]
    torch.library.opcheck(op, (values, indices, *tensors[1:], None, True))
    compiled = torch.compile(
        lambda v, w: ops.reconstruct(v, indices, w, b, x)[1].sum(), fullgraph=True
    )
    expected = ops.reconstruct(values, indices, W, b, x)[1].sum()
    torch.testing.assert_close(compiled(values, W), expected)


def test_a_second_derivative_is_refused():
    values, indices, W, b, x, _ = inputs(Shape(4, 5, 12, 3), torch.float32, "topk")
    loss = ops.reconstruct(values.requires_grad_(), indices, W, b, x)[1].sum()
    (first,) = torch.autograd.grad(loss, values, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        first.sum().backward()


@implementations
def test_a_malformed_code_is_refused(isa):
    for indices, offsets, message in malformed_codes(ODD):
        W, b, x = torch.ones(ODD.F, ODD.d), torch.ones(ODD.d), torch.ones(ODD.N, ODD.d)
        with running(isa), pytest.raises(InputError, match=message):
            ops.reconstruct(torch.ones(indices.shape), indices, W, b, x, offsets)


@isas
def test_products_are_those_of_every_entry_and_wide_values_are_taken(isa):
    values, indices, W, b, x, offsets = inputs(Shape(20, 9, 33, 4), torch.bfloat16, "csr")
    wide = values.float()
    wide[::3] = 0  # the products are wanted all the same
    with running(isa), ops.trusted():
        error, _, products = ops.reconstruct_products(wide, indices, W, b.float(), x, offsets)
    rows = torch.arange(20).repeat_interleave(offsets.diff())
    expected = (error.double()[rows] * W.double()[indices.long()]).sum(1)
    # The Triton kernel takes them of the error before it is rounded.
    torch.testing.assert_close(products.double(), expected, rtol=2**-6, atol=0.05)
