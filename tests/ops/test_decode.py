"""decode: sums of decoder rows, for both layouts of a code."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import as_csr, assert_accurate, dtypes, isas, running, shapes, topk_code
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.spec import Shape


@isas
@shapes
@dtypes
@pytest.mark.parametrize("layout", ["topk", "csr"])
def test_matches_the_definition(isa, shape, dtype, layout):
    values, indices = topk_code(shape, dtype)
    W = torch.randn(shape.F, shape.d).to(dtype)
    offsets = None
    if layout == "csr":
        offsets, indices, values = as_csr(values, indices)
    with ops.use("reference"):
        plain = ops.decode(values, indices, W, offsets)
        exact = ops.decode(values.double(), indices, W.double(), offsets)
    with running(isa, threads=2):
        assert_accurate(ops.decode(values, indices, W, offsets), plain, exact)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(3, 2)}, r"values.shape=\[3, 2\]: expected \[37, 9\]"),
        ({"indices": torch.zeros(37, 9)}, "indices.dtype=torch.float32"),
        ({"W_dec": torch.zeros(515)}, r"W_dec.shape=\[515\]"),
        ({"values": torch.zeros(37, 9).bfloat16()}, "values.dtype=torch.bfloat16"),
    ],
)
def test_bad_input_is_named(change, message):
    values, indices = topk_code(Shape(37, 130, 515, 9), torch.float32)
    arguments = {"values": values, "indices": indices, "W_dec": torch.zeros(515, 130)} | change
    with pytest.raises(InputError, match=message):
        ops.decode(**arguments)
