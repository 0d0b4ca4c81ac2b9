"""sparse_adam_: the fused backward and optimiser step against dense gradients and torch's Adam."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import ISAS, isas, running, topk_code
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.parameters import Moments, Weights
from trustbench.ops.sparse_adam import gradients
from trustbench.ops.spec import Shape

SHAPES = [Shape(1, 1, 1, 1), Shape(37, 130, 115, 9), Shape(100, 33, 30, 30), Shape(0, 7, 9, 2)]


def make(shape: Shape):
    W_dec = torch.nn.functional.normalize(torch.randn(shape.F, shape.d), dim=1)
    weights = Weights(torch.randn(shape.F, shape.d), W_dec, torch.randn(shape.F))
    values, indices = topk_code(shape, torch.float32)
    code = ops.transpose_code(indices, shape.F)
    return weights, values, code, torch.randn(shape.N, shape.d), torch.randn(shape.N, shape.d)


@isas
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize(("l1", "l1_form"), [(0.0, "sum"), (0.3, "sum"), (0.3, "decoder_norm")])
def test_equals_the_reference(isa, shape, unit_norm, l1, l1_form):
    weights, values, code, x, grad = make(shape)
    shared = {"unit_norm": unit_norm, "l1": l1, "l1_form": l1_form}
    results = []
    for context in (ops.use("reference"), running(isa, threads=2)):
        mine = Weights(*(w.clone() for w in weights))
        moments = Moments.zeros_like(mine)
        with context:
            norm, through_x = ops.sparse_grad_norm(mine, values, code, x, grad, **shared)
            for step in (1, 2):
                db_dec = ops.sparse_adam_(
                    mine, values, code, x, grad, moments,
                    step=step, lr=1e-2, eps=1e-3, clip_scale=0.5, **shared,
                )  # fmt: skip
        results.append((*mine, *moments, norm, through_x, db_dec))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(
            a, e, rtol=1e-3, atol=1e-4 * max(1.0, float(e.abs().max())) if e.numel() else 0
        )


def test_definition_is_the_gradient_of_the_loss():
    """In fp64, against autograd through dense plain PyTorch."""
    shape = Shape(6, 5, 12, 3)
    W_enc, W_dec, b_enc, x, target = (
        torch.randn(s, dtype=torch.float64) for s in ((12, 5), (12, 5), (12,), (6, 5), (6, 5))
    )
    parameters = [W_enc.requires_grad_(), W_dec.requires_grad_(), b_enc.requires_grad_()]
    x.requires_grad_()
    code = ops.encode_topk(x, W_enc, b_enc, shape.k)
    acts = torch.zeros(6, 12, dtype=torch.float64).scatter(1, code.indices.long(), code.values)
    x_hat = acts @ W_dec
    penalty = 0.2 * (acts * W_dec.norm(dim=1)).sum()
    loss = (x_hat - target).square().sum() + penalty
    expected = torch.autograd.grad(loss, [*parameters, x])
    with torch.no_grad():
        by_feature = ops.transpose_code(code.indices, 12)
        found = gradients(
            Weights(*(p.detach() for p in parameters)), code.values, by_feature, x.detach(),
            2 * (x_hat - target), None, 0.2, True, False,
        )  # fmt: skip
        squared, through_x = ops.sparse_grad_norm(
            Weights(*(p.detach() for p in parameters)), code.values, by_feature, x.detach(),
            2 * (x_hat - target), unit_norm=False, l1=0.2, l1_form="decoder_norm",
        )  # fmt: skip
    for a, e in zip(found, expected[:3], strict=True):
        torch.testing.assert_close(a, e)
    torch.testing.assert_close(through_x, -expected[3].sum(0))
    assert squared == pytest.approx(sum(float(g.square().sum()) for g in expected[:3]))


def test_same_bits_on_any_number_of_threads():
    weights, values, code, x, grad = make(Shape(200, 33, 300, 20))
    results = []
    for threads in (1, 2, 5):
        mine = Weights(*(w.clone() for w in weights))
        moments = Moments.zeros_like(mine)
        with running(ISAS[0], threads):
            db = ops.sparse_adam_(mine, values, code, x, grad, moments, step=1, lr=1e-2)
        results.append((*mine, *moments, db))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bad_input_is_named():
    weights, values, code, x, grad = make(SHAPES[1])
    moments = Moments.zeros_like(weights)
    with pytest.raises(InputError, match="step=0"):
        ops.sparse_adam_(weights, values, code, x, grad, moments, step=0, lr=1e-2)
    for change, message in (
        ({"rows": code.rows + 37}, r"code\.rows=.*expected integers in \[0, 37\)"),
        ({"positions": code.positions - 1}, r"code\.positions"),
        ({"feature_offsets": code.feature_offsets + 1}, r"code\.feature_offsets"),
    ):
        with pytest.raises(InputError, match=message):
            ops.sparse_adam_(
                weights, values, code._replace(**change), x, grad, moments, step=1, lr=1e-2
            )
    with pytest.raises(InputError, match=r"grad\.stride"):
        ops.sparse_adam_(weights, values, code, x, grad.T.contiguous().T, moments, step=1, lr=1e-2)
    with pytest.raises(InputError, match="l1_form='max'"):
        ops.sparse_adam_(weights, values, code, x, grad, moments, step=1, lr=1e-2, l1_form="max")


WIDE = Shape(37, 24, 41, 9)


def unequal(d_out: int):
    """`make`, with decoder rows of d_out numbers, and a push for every entry."""
    weights, values, code, x, _ = make(WIDE)
    W_dec = torch.nn.functional.normalize(torch.randn(WIDE.F, d_out), dim=1)
    push = 0.3 * torch.rand(values.shape)
    return weights._replace(W_dec=W_dec), values, code, x, torch.randn(WIDE.N, d_out), push


@isas
@pytest.mark.parametrize("d_out", [24, 70])
@pytest.mark.parametrize("pushed", [True, False])
@pytest.mark.parametrize("l1_form", ["sum", "decoder_norm"])
def test_pushes_and_decoders_of_another_width(isa, d_out, pushed, l1_form):
    weights, values, code, x, grad, push = unequal(d_out)
    shared = {"l1_form": l1_form, "push": push if pushed else None, "l1": 0.2}
    results = []
    for context in (ops.use("reference"), running(isa, threads=2)):
        mine, fired = Weights(*(w.clone() for w in weights)), torch.full((WIDE.F,), -1).int()
        moments = Moments.zeros_like(mine)
        with context:
            norm, _ = ops.sparse_grad_norm(mine, values, code, x, grad, **shared)
            through = ops.sparse_adam_(
                mine, values, code, x, grad, moments, lr=1e-2, eps=1e-3, fired=fired, **shared
            )
        results.append((*mine, *moments, norm, through, fired.float()))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4 * max(1.0, float(e.abs().max())))


@pytest.mark.parametrize("form", ["sum", "decoder_norm"])
def test_a_push_is_the_derivative_of_the_penalty(form):
    """In fp64, against autograd: Σ tanh(a ‖W‖) or Σ tanh(a)."""
    W_enc, W_dec, b_enc, x, target = (
        torch.randn(s, dtype=torch.float64) for s in ((12, 5), (12, 4), (12,), (6, 5), (6, 4))
    )
    parameters = [t.requires_grad_() for t in (W_enc, W_dec, b_enc)]
    code = ops.encode_relu(x, W_enc, b_enc)
    features = code.indices.long()
    x_hat = ops.decode(code.values, code.indices, W_dec, code.row_offsets)
    norms = W_dec.norm(dim=1)[features] if form == "decoder_norm" else torch.ones(())
    size = code.values * norms
    loss = (x_hat - target).square().sum() + torch.tanh(size).sum()
    expected = torch.autograd.grad(loss, parameters)
    push = ((1 - torch.tanh(size) ** 2) * norms).detach()
    plain = Weights(*(p.detach() for p in parameters))
    by_feature = ops.transpose_code(code.indices, 12, code.row_offsets)
    grad = 2 * (x_hat - target).detach()
    found = gradients(
        plain, code.values.detach(), by_feature, x, grad, push, 0.0, form == "decoder_norm", False
    )
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_scalars_moments_and_copies_have_one_definition(kind):
    weights, values, code, x, grad, _ = unequal(70)
    results = []
    for name in ("reference", "triton"):
        mine = Weights(*(w.clone() for w in weights))
        moments = Moments.zeros_like(mine, kind)
        copies = (mine.W_enc.bfloat16(), mine.W_dec.bfloat16())
        scalars = ops.step_scalars(2, 1e-2, 0.9, 0.999, scale=0.5, slope=0.1)
        with ops.use(name):
            ops.sparse_adam_(
                mine, values, code, x, grad, moments, scalars=scalars, copies=copies, eps=1e-3
            )
        results.append((*mine, *(m.float() for m in moments), *(c.float() for c in copies)))
    for i, (a, e) in enumerate(zip(*results, strict=True)):
        narrow = i >= 9 or (kind == torch.bfloat16 and 3 <= i < 7)
        torch.testing.assert_close(a, e, rtol=2**-7 if narrow else 1e-3, atol=1e-5)
    with ops.use("cpp"), pytest.raises(NotImplementedError, match="for the Triton kernels"):
        ops.sparse_adam_(mine, values, code, x, grad, Moments.zeros_like(mine), scalars=scalars)


def test_opcheck():
    weights, values, code, x, grad, push = unequal(70)
    moments = Moments.zeros_like(weights)
    shared = (values, *code, x, grad, push, None)
    fired, options = torch.zeros(WIDE.F).int(), (1, 1e-3, 0.9, 0.999, 1e-8, True, 0.0, False, 1.0)
    torch.library.opcheck(
        torch.ops.trustbench.sparse_adam.default,
        (*weights, *moments, None, None, fired, *shared, *options),
    )
    torch.library.opcheck(
        torch.ops.trustbench.sparse_grad_norm.default, (*weights, *shared, True, 0.0, False)
    )
    with pytest.raises(InputError, match="weights='tuple': expected Weights"):
        ops.sparse_adam_(tuple(weights), values, code, x, grad, moments)
