"""encode_batchtopk: the N k largest positive pre-activations of a batch."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import assert_accurate, dtypes, encoder_inputs, isas, running, shapes
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.codes import entry_rows
from trustbench.ops.registration import pre_activations
from trustbench.ops.spec import Shape

ODD = Shape(37, 130, 515, 9)


@isas
@shapes
@dtypes
def test_keeps_the_largest_of_the_batch(isa, shape, dtype):
    x, W, b = encoder_inputs(shape, dtype)
    with ops.use("reference"):
        expected = ops.encode_batchtopk(x, W, b, shape.k)
    with running(isa, threads=2):
        code = ops.encode_batchtopk(x, W, b, shape.k)
    exact = x.double() @ W.double().T + b.double()
    top = exact.flatten().sort(descending=True).values[: shape.N * shape.k]
    top = top[top > 0]
    assert len(code.values) == len(expected.values)
    assert_accurate(code.values.sort().values, expected.values.sort().values, top.flip(0))
    at = (entry_rows(code.indices, code.row_offsets), code.indices.long())
    plain = pre_activations(x, W, b, None)
    assert_accurate(code.values, plain[at].to(dtype), exact[at])


@isas
@pytest.mark.parametrize("k", [1, 3, 515])
def test_ties_go_to_the_lower_token_then_feature(isa, k):
    x = torch.randint(-2, 3, (37, 130)).float()
    W = torch.randint(-1, 2, (515, 130)).float() * (torch.rand(515, 130) > 0.9)
    b = torch.zeros(515)
    with ops.use("reference"):
        expected = ops.encode_batchtopk(x, W, b, k)
    for threads in (1, 3):
        with running(isa, threads=threads):
            code = ops.encode_batchtopk(x, W, b, k)
        assert all(torch.equal(a, e) for a, e in zip(code, expected, strict=True))


@isas
def test_many_more_candidates_than_kept(isa):
    # Every row prunes its list many times over.
    x, W, b = encoder_inputs(Shape(3, 16, 9000, 2), torch.float32)
    b = torch.linspace(0, 50, 9000)
    with ops.use("reference"):
        expected = ops.encode_batchtopk(x, W, b, 2)
    with running(isa):
        code = ops.encode_batchtopk(x, W, b, 2)
    assert torch.equal(code.row_offsets, expected.row_offsets)
    assert torch.equal(code.indices, expected.indices)


def test_gradcheck_opcheck_and_bad_input():
    x, W, b = (t.double().requires_grad_() for t in encoder_inputs(Shape(4, 5, 12, 3), torch.float32))
    torch.autograd.gradcheck(lambda *a: ops.encode_batchtopk(*a, 3).values, (x, W, b))
    torch.library.opcheck(
        torch.ops.trustbench.encode_batchtopk.default,
        (x.detach(), W.detach(), b.detach(), 3, None),
        test_utils=("test_schema", "test_faketensor"),
    )
    with pytest.raises(InputError, match=r"k=13: expected an integer in \[1, d_sae=12\]"):
        ops.encode_batchtopk(x, W, b, 13)
