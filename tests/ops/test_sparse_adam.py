"""sparse_adam_: the fused backward and optimiser step against dense gradients and torch's Adam."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import ISAS, isas, running, topk_code
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.sparse_adam import Moments, Weights
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
        results.append((*mine, *moments, torch.tensor(norm), through_x, db_dec))
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
        from trustbench.ops.sparse_adam import _gradients

        found = _gradients(
            Weights(*(p.detach() for p in parameters)), code.values, by_feature, x.detach(),
            2 * (x_hat - target), 0.2, "decoder_norm", False,
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
    with pytest.raises(InputError, match=r"grad\.shape"):
        ops.sparse_adam_(weights, values, code, x, grad[:3], moments, step=1, lr=1e-2)
    with pytest.raises(InputError, match=r"x\.dtype=torch\.bfloat16"):
        ops.sparse_adam_(weights, values, code, x.bfloat16(), grad, moments, step=1, lr=1e-2)
    narrow = Moments.zeros_like(Weights(*(w[:3] for w in weights)))
    with pytest.raises(InputError, match=r"moments\.shape=\[3, 130\]: expected \[115, 130\]"):
        ops.sparse_adam_(weights, values, code, x, grad, narrow, step=1, lr=1e-2)
    for change, message in (
        ({"rows": code.rows + 37}, r"code\.rows=.*expected integers in \[0, 37\)"),
        ({"rows": code.rows.long()}, r"code\.rows\.dtype=torch\.int64"),
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
