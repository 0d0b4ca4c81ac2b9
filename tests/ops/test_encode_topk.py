"""encode_topk: exact selection, ties to the lower index, on every instruction set."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import (
    ISAS,
    assert_accurate,
    cells,
    dense,
    dtypes,
    encoder_inputs,
    exact_pre,
    implementations,
    isas,
    plain_pre,
    running,
    shapes,
)
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.spec import Shape

ODD = Shape(37, 130, 515, 9)


KEY_EPS = 2.0**-19  # the Triton kernel's pre-activations, from bf16 operands: 19 bits of mantissa


def check_selection(code, x, W, b, k, matmul_dtype, eps=0.0):
    """Values are the k largest; an index may differ only within the rounding of the values."""
    plain, exact = plain_pre(x, W, b, matmul_dtype), exact_pre(x, W, b, matmul_dtype)
    top = exact.sort(dim=1, descending=True, stable=True).values[:, :k].relu()
    plain_top = plain.sort(dim=1, descending=True, stable=True).values[:, :k].relu()
    assert code.indices.dtype == torch.int32
    assert_accurate(code.values, plain_top.to(code.values.dtype), top, eps)
    at = exact.gather(1, code.indices.long()).relu()
    eps = max(torch.finfo(code.values.dtype).eps, eps)
    scale = max(exact.abs().max().item(), 1.0) if exact.numel() else 1.0
    slack = 4 * eps * scale + 2 * (plain.double() - exact).abs().max().item() if at.numel() else 0
    assert ((at - top).abs() <= slack).all()
    for row in code.indices.tolist():
        assert len(set(row)) == k
    assert (code.values[:, :-1] >= code.values[:, 1:]).all()


@cells
def test_selects_the_k_largest(isa, shape, dtype):
    x, W, b = encoder_inputs(shape, dtype)
    with running(isa):
        code = ops.encode_topk(x, W, b, shape.k)
    check_selection(code, x, W, b, shape.k, None)


@implementations
@shapes
def test_bf16_matmul_of_fp32_tensors(isa, shape):
    x, W, b = encoder_inputs(shape, torch.float32)
    with running(isa):
        code = ops.encode_topk(x, W, b, shape.k, matmul_dtype=torch.bfloat16)
    eps = KEY_EPS if isa == "triton" else 0.0
    check_selection(code, x, W, b, shape.k, torch.bfloat16, eps)


@implementations
@pytest.mark.parametrize("k", [1, 3, 50, 515])
def test_ties_go_to_the_lower_index(isa, k):
    # Small integers: every product and sum is exact, and most pre-activations have equals.
    x = torch.randint(-2, 3, (37 if k < 100 else 5, 130)).float()
    W = torch.randint(-1, 2, (515, 130)).float() * (torch.rand(515, 130) > 0.9)
    b = torch.randint(-1, 2, (515,)).float()
    pre = (x @ W.T + b).tolist()
    order = [sorted(range(515), key=lambda i: (-row[i], i))[:k] for row in pre]
    expected = torch.tensor(order, dtype=torch.int32)
    with running(isa):
        code = ops.encode_topk(x, W, b, k)
        rounded = ops.encode_topk(x, W, b, k, matmul_dtype=torch.bfloat16)
    for found in (code, rounded):
        assert torch.equal(found.indices, expected)
        assert torch.equal(found.values, (x @ W.T + b).gather(1, expected.long()).relu())


@isas
def test_nan_is_largest_and_inf_is_a_number(isa):
    x, W, b = encoder_inputs(ODD, torch.float32)
    x[3, 5], x[4, 5] = float("nan"), float("inf")
    b[7], b[9] = float("inf"), float("-inf")
    with ops.use("reference"):
        expected = ops.encode_topk(x, W, b, 9)
    with running(isa):
        code = ops.encode_topk(x, W, b, 9)
    assert torch.equal(code.indices[3], torch.arange(9, dtype=torch.int32))
    assert torch.isnan(code.values[3]).all()
    # Row 4: inf times weights of either sign, and inf - inf.
    torch.testing.assert_close(code.values, expected.values, equal_nan=True)
    assert torch.equal(code.indices[4], expected.indices[4])


@isas
def test_all_pre_activations_negative_give_zeros_with_true_indices(isa):
    x, W, b = encoder_inputs(ODD, torch.float32)
    with ops.use("reference"):
        expected = ops.encode_topk(x, W, b - 100, 9)
    with running(isa):
        code = ops.encode_topk(x, W, b - 100, 9)
    assert (code.values == 0).all()
    assert (code.indices == expected.indices).float().mean() > 0.99


@isas
def test_same_bits_on_any_number_of_threads(isa):
    tokens = 301 if isa != "triton" else 31
    x, W, b = encoder_inputs(Shape(tokens, 65, 2000, 32), torch.float32)
    with running(isa, threads=1):
        one = ops.encode_topk(x, W, b, 32)
    for threads in (2, 5):
        with running(isa, threads=threads):
            many = ops.encode_topk(x, W, b, 32)
        assert torch.equal(one.values, many.values) and torch.equal(one.indices, many.indices)


def test_more_features_than_one_superblock_and_a_deep_matmul():
    x, W, b = encoder_inputs(Shape(5, 2100, 1200, 8), torch.float32)
    with running(ISAS[0]):
        code = ops.encode_topk(x, W, b, 8)
    check_selection(code, x, W, b, 8, None)


def test_the_reference_takes_some_tokens_at_a_time():
    x, W, b = encoder_inputs(Shape(10, 4, 2**19, 3), torch.float32)  # 8 tokens a part
    with ops.use("reference"):
        code = ops.encode_topk(x, W, b, 3)
    check_selection(code, x, W, b, 3, None)


@implementations
@dtypes
def test_gradients_have_the_dtype_of_their_tensor_and_its_accuracy(isa, dtype):
    x, W, b = (t.requires_grad_() for t in encoder_inputs(ODD, dtype))
    grad = torch.randn(37, 9).to(dtype)
    with running(isa):
        code = ops.encode_topk(x, W, b, 9)
        found = torch.autograd.grad(code.values, (x, W, b), grad)
    dpre = dense(grad * (code.values > 0), code.indices, 515).detach()

    def gradients(wide):
        g = dpre.to(wide)
        return g @ W.detach().to(wide), g.T @ x.detach().to(wide), g.sum(0)

    for a, p, e in zip(found, gradients(torch.float32), gradients(torch.float64), strict=True):
        assert_accurate(a, p.to(dtype), e)


def test_an_infinite_gradient_of_an_entry_of_value_zero_stops_there():
    x, W, b = (t.requires_grad_() for t in encoder_inputs(ODD, torch.float32))
    values = ops.encode_topk(x, W, b - 100, 9).values
    found = torch.autograd.grad(values, (x, W, b), torch.full((37, 9), float("inf")))
    assert not any(g.any() for g in found)


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
def test_gradients_follow_the_kept_entries(implementation):
    x, W, b = (t.requires_grad_() for t in encoder_inputs(ODD, torch.float32))
    weight = torch.randn(37, 9)
    with ops.use(implementation):
        code = ops.encode_topk(x, W, b, 9)
        found = torch.autograd.grad((code.values * weight).sum(), (x, W, b))
    pre = x @ W.T + b
    picked = pre.gather(1, code.indices.long()).relu()
    expected = torch.autograd.grad((picked * weight).sum(), (x, W, b))
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


def test_gradcheck_in_fp64():
    x, W, b = (t.double().requires_grad_() for t in encoder_inputs(Shape(4, 5, 12, 3), torch.float32))
    torch.autograd.gradcheck(lambda *a: ops.encode_topk(*a, 3).values, (x, W, b))


def test_opcheck_and_compile():
    x, W, b = (t.requires_grad_() for t in encoder_inputs(ODD, torch.float32))
    torch.library.opcheck(torch.ops.trustbench.encode_topk.default, (x, W, b, 9, None, None))
    compiled = torch.compile(lambda *a: ops.encode_topk(*a, 9).values.sum(), fullgraph=True)
    expected = torch.autograd.grad(ops.encode_topk(x, W, b, 9).values.sum(), (x, W, b))
    for a, e in zip(torch.autograd.grad(compiled(x, W, b), (x, W, b)), expected, strict=True):
        assert torch.equal(a, e)
    by_k = torch.compile(lambda k: ops.encode_topk(x, W, b, k), fullgraph=True)
    for k in (9, 3, 515):  # k becomes a symbol
        with torch.no_grad():
            assert torch.equal(by_k(k).indices, ops.encode_topk(x, W, b, k).indices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, r"k=0: expected an integer in \[1, d_sae=515\]"),
        ({"k": 516}, r"k=516: expected an integer in \[1, d_sae=515\]"),
        ({"k": 2.5}, r"k=2\.5: expected an integer in"),
        ({"k": "9"}, "k='9': expected an integer in"),
        ({"x": torch.zeros(3, 0), "W_enc": torch.zeros(515, 0)}, r"W_enc\.shape=\[515, 0\]"),
        ({"x": torch.zeros(3, 7)}, r"W_enc.shape=\[515, 130\]: expected \[\*, 7\]"),
        ({"W_enc": torch.zeros(515, 130).bfloat16()}, "W_enc.dtype=torch.bfloat16"),
        ({"b_enc": torch.zeros(4)}, r"b_enc.shape=\[4\]: expected \[515\]"),
        ({"matmul_dtype": torch.float16}, "matmul_dtype=torch.float16"),
    ],
)
def test_bad_input_is_named(change, message):
    x, W, b = encoder_inputs(ODD, torch.float32)
    arguments = {"x": x, "W_enc": W, "b_enc": b, "k": 9} | change
    with pytest.raises(InputError, match=message):
        ops.encode_topk(**arguments)


@isas
def test_values_stay_fp32_when_asked(isa):
    x, W, b = encoder_inputs(Shape(20, 9, 33, 4), torch.bfloat16)
    with running(isa):
        wide = ops.encode_topk(x, W, b, 4, out_dtype=torch.float32)
        narrow = ops.encode_topk(x, W, b, 4)
    assert wide.values.dtype == torch.float32 and narrow.values.dtype == torch.bfloat16
    assert torch.equal(wide.values.bfloat16(), narrow.values)
    assert torch.equal(wide.indices, narrow.indices)
    with pytest.raises(InputError, match=r"out_dtype=torch\.int32"):
        ops.encode_topk(x, W, b, 4, out_dtype=torch.int32)
