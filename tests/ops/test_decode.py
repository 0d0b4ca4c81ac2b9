"""decode: sums of decoder rows, for both layouts of a code."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import (
    as_csr,
    assert_accurate,
    cells,
    dense,
    dtypes,
    encoder_inputs,
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
    W = torch.randn(shape.F, shape.d).to(dtype)
    offsets = None
    if layout == "csr":
        offsets, indices, values = as_csr(values, indices)
    acts = dense(values, indices, shape.F, offsets)
    plain, exact = (acts.float() @ W.float()).to(dtype), acts.double() @ W.double()
    with running(isa, threads=2):
        assert_accurate(ops.decode(values, indices, W, offsets), plain, exact)


@implementations
@dtypes
def test_gradients_have_the_dtype_of_their_tensor_and_its_accuracy(isa, dtype):
    values, indices = topk_code(Shape(37, 130, 515, 9), dtype)
    W, grad = torch.randn(515, 130).to(dtype).requires_grad_(), torch.randn(37, 130).to(dtype)
    with running(isa):
        x_hat = ops.decode(values.requires_grad_(), indices, W)
        dvalues, dW = torch.autograd.grad(x_hat, (values, W), grad)
    acts = dense(values.detach(), indices, 515)

    def gradients(wide):
        code = (grad.to(wide) @ W.detach().to(wide).T).gather(1, indices.long())
        return code, acts.to(wide).T @ grad.to(wide)

    for a, p, e in zip(
        (dvalues, dW), gradients(torch.float32), gradients(torch.float64), strict=True
    ):
        assert_accurate(a, p.to(dtype), e)


@implementations
def test_an_entry_of_value_zero_contributes_nothing(isa):
    values, indices = torch.tensor([[2.0, 0.0]]), torch.tensor([[1, 0]], dtype=torch.int32)
    W = torch.tensor([[float("nan"), float("inf")], [3.0, 4.0]])
    with running(isa):
        assert ops.decode(values, indices, W).tolist() == [[6.0, 8.0]]


@pytest.mark.parametrize("layout", ["topk", "csr"])
def test_gradcheck_in_fp64(layout):
    values, indices = topk_code(Shape(4, 5, 12, 3), torch.float64)
    offsets = None
    if layout == "csr":
        offsets, indices, values = as_csr(values, indices)
    W = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda v, w: ops.decode(v, indices, w, offsets), (values.requires_grad_(), W)
    )


def test_opcheck_and_compile():
    values, indices = topk_code(Shape(37, 130, 515, 9), torch.float32)
    W = torch.randn(515, 130, requires_grad=True)
    torch.library.opcheck(
        torch.ops.trustbench.decode.default, (values.requires_grad_(), indices, W, None)
    )
    compiled = torch.compile(lambda v, w: ops.decode(v, indices, w).square().sum(), fullgraph=True)
    expected = ops.decode(values, indices, W).square().sum()
    torch.testing.assert_close(compiled(values, W), expected)
    for a, e in zip(
        torch.autograd.grad(compiled(values, W), (values, W)),
        torch.autograd.grad(expected, (values, W)),
        strict=True,
    ):
        torch.testing.assert_close(a, e)


@isas
def test_strided_offsets(isa):
    values, indices = topk_code(Shape(37, 130, 515, 9), torch.float32)
    offsets, indices, values = as_csr(values, indices)
    W = torch.randn(515, 130)
    with running(isa):
        expected = ops.decode(values, indices, W, offsets)
        assert torch.equal(ops.decode(values, indices, W, strided(offsets)), expected)


@implementations
def test_a_malformed_code_is_refused(isa):
    shape = Shape(37, 130, 515, 9)
    for indices, offsets, message in malformed_codes(shape):
        with running(isa), pytest.raises(InputError, match=message):
            ops.decode(torch.ones(indices.shape), indices, torch.ones(shape.F, shape.d), offsets)


@pytest.mark.parametrize("of", ["values", "W_dec"])
def test_a_second_derivative_is_refused(of):
    values, indices = topk_code(Shape(4, 5, 12, 3), torch.float32)
    tensors = {"values": values.requires_grad_(), "W_dec": torch.randn(12, 5, requires_grad=True)}
    loss = ops.decode(indices=indices, **tensors).square().sum()
    (first,) = torch.autograd.grad(loss, tensors[of], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        first.square().sum().backward()


def _topk(x, W, b):
    return ops.encode_topk(x, W, b, 9)


def _batchtopk(x, W, b):
    return ops.encode_batchtopk(x, W, b, 9)


@pytest.mark.parametrize("encode", [_topk, ops.encode_relu, _batchtopk])
def test_a_whole_autoencoder_compiles_and_trains_as_in_eager(encode):
    def loss(x, W_enc, b_enc, W_dec):
        code = encode(x, W_enc, b_enc)
        return (ops.decode(code.values, code.indices, W_dec, code.row_offsets) - x).square().mean()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True)
    for tokens in (37, 12):  # another batch size, and so another number of entries
        x, W, b = encoder_inputs(Shape(tokens, 130, 515, 9), torch.float32)
        inputs = [t.requires_grad_() for t in (x, W, b, torch.randn(515, 130))]
        expected = torch.autograd.grad(loss(*inputs), inputs)
        for a, e in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
            torch.testing.assert_close(a, e)
