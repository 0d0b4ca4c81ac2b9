"""encode_batchtopk: the N k largest positive pre-activations of a batch."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import (
    assert_accurate,
    cells,
    dense,
    encoder_inputs,
    exact_pre,
    implementations,
    isas,
    plain_pre,
    running,
)
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.codes import entry_rows
from trustbench.ops.spec import Shape

ODD = Shape(37, 130, 515, 9)


@cells
def test_keeps_the_largest_of_the_batch(isa, shape, dtype):
    x, W, b = encoder_inputs(shape, dtype)
    with running(isa, threads=2):
        code = ops.encode_batchtopk(x, W, b, shape.k)
    plain, exact = plain_pre(x, W, b), exact_pre(x, W, b)

    def largest(pre):
        top = pre.flatten().sort().values[pre.numel() - shape.N * shape.k :]
        return top[top > 0]

    assert len(code.values) == len(largest(exact))
    assert_accurate(code.values.sort().values, largest(plain).to(dtype), largest(exact))
    at = (entry_rows(code.indices, code.row_offsets), code.indices.long())
    assert_accurate(code.values, plain[at].to(dtype), exact[at])


@implementations
@pytest.mark.parametrize("k", [1, 3, 515])
def test_ties_go_to_the_lower_token_then_feature(isa, k):
    x = torch.randint(-2, 3, (37, 130)).float()
    W = torch.randint(-1, 2, (515, 130)).float() * (torch.rand(515, 130) > 0.9)
    b = torch.zeros(515)
    flat = (x @ W.T).flatten().tolist()
    best = sorted(range(len(flat)), key=lambda p: (-flat[p], p))[: 37 * k]
    expected = torch.zeros(37 * 515)
    kept = [p for p in best if flat[p] > 0]
    expected[kept] = torch.tensor([flat[p] for p in kept])
    for threads in (1, 3):
        with running(isa, threads=threads):
            code = ops.encode_batchtopk(x, W, b, k)
        found = dense(code.values, code.indices, 515, code.row_offsets)
        assert torch.equal(found, expected.view(37, 515)) and len(code.values) == len(kept)


@implementations
def test_nan_is_largest_and_inf_is_a_number(isa):
    x, W, b = encoder_inputs(ODD, torch.float32)
    x[3, 5], b[7], b[9] = float("nan"), float("inf"), float("-inf")
    with running(isa):
        code = ops.encode_batchtopk(x, W, b, 9)  # 333 entries, fewer than the 515 NaN of token 3
    assert code.row_offsets.diff()[3] == len(code.values) == 333
    assert code.values.isnan().all() and torch.equal(code.indices, torch.arange(333).int())
    with running(isa):
        code = ops.encode_batchtopk(x[4:], W, b, 9)
    assert code.values.isinf().sum() == 33 and (code.values > 0).all()
    assert not (code.indices == 9).any()


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
        (x, W, b, 3, None, None),
    )
    with pytest.raises(InputError, match=r"k=13: expected an integer in \[1, d_sae=12\]"):
        ops.encode_batchtopk(x, W, b, 13)


@isas
def test_a_padded_code_is_the_exact_one(isa):
    shape = Shape(20, 9, 33, 4)
    x, W, b = encoder_inputs(shape, torch.float32)
    for bias in (b, b - 3):  # N k entries, and fewer
        with running(isa):
            exact = ops.encode_batchtopk(x, W, bias, 4)
            code = ops.encode_batchtopk_padded(x, W, bias, 4)
        nnz = len(exact.values)
        assert code.fits.all() and len(code.values) == 80 and code.row_offsets[-1] == nnz
        assert torch.equal(code.values[:nnz], exact.values) and not code.values[nnz:].any()
        assert torch.equal(code.indices[:nnz], exact.indices)
