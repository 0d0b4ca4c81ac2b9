"""weight_grad: sparse weight gradients in token order."""

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
    coefs, indices = topk_code(shape, dtype)
    source = torch.randn(shape.N, shape.d).to(dtype)
    offsets = None
    if layout == "csr":
        offsets, indices, coefs = as_csr(coefs, indices)
    with ops.use("reference"):
        plain = ops.weight_grad(coefs, indices, source, shape.F, offsets)
        exact = ops.weight_grad(coefs.double(), indices, source.double(), shape.F, offsets)
    with running(isa, threads=2):
        found = ops.weight_grad(coefs, indices, source, shape.F, offsets)
    for a, p, e in zip(found, plain, exact, strict=True):
        assert_accurate(a, p, e)


def test_opcheck_and_bad_input():
    coefs, indices = topk_code(Shape(37, 130, 515, 9), torch.float32)
    source = torch.randn(37, 130)
    torch.library.opcheck(
        torch.ops.trustbench.weight_grad.default, (coefs, indices, source, 515, None)
    )
    with pytest.raises(InputError, match=r"coefs.shape=\[37, 8\]: expected \[37, 9\]"):
        ops.weight_grad(coefs[:, :8], indices, source, 515)
