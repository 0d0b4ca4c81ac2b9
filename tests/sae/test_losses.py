"""The autograd losses against dense plain PyTorch, in fp64."""

from __future__ import annotations

import pytest
import torch

from trustbench.errors import InputError
from trustbench.sae import SAE, SAEConfig, loss
from trustbench.sae.families.jumprelu import jump, step

DEAD = torch.arange(40) % 3 == 0


def make(**fields) -> SAE:
    cfg = SAEConfig(**({"d_in": 12, "d_sae": 40, "k": 5, "auxk": 4, "unit_norm": False} | fields))
    sae = SAE(cfg, torch.float64)
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return sae


def dense_loss(sae: SAE, x: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    cfg = sae.cfg
    pre = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    if cfg.activation == "topk":
        kept = torch.zeros_like(pre).scatter(1, pre.topk(cfg.k).indices, 1.0)
        acts = (pre * kept).relu()
    elif cfg.activation == "batchtopk":
        least = pre.flatten().topk(len(x) * cfg.k).values[-1]
        acts = (pre * (pre >= least)).relu()
    else:
        acts = pre.relu()
    x_hat = acts @ sae.W_dec + sae.b_dec
    total = (x - x_hat).square().sum(1).mean()
    if cfg.activation == "relu":
        weight = sae.W_dec.norm(dim=1) if cfg.l1_form == "decoder_norm" else 1.0
        return total + cfg.l1_coefficient * (acts * weight).sum(1).mean()
    masked = pre.masked_fill(~dead, -torch.inf)
    top = masked.topk(cfg.auxk)
    e_hat = (top.values.relu()[:, :, None] * sae.W_dec[top.indices]).sum(1)
    aux = ((x - x_hat).detach() - e_hat).square().sum(1).mean()
    return total + cfg.auxk_coefficient * aux


@pytest.mark.parametrize(
    "fields",
    [
        {"activation": "topk"},
        {"activation": "batchtopk"},
        {"activation": "relu", "l1_coefficient": 0.3, "l1_form": "sum"},
        {"activation": "relu", "l1_coefficient": 0.3, "l1_form": "decoder_norm"},
    ],
    ids=lambda f: "-".join(map(str, f.values())),
)
def test_value_and_gradients(fields):
    sae, x = make(**fields), torch.randn(9, 12, dtype=torch.float64)
    terms = loss(sae, x, dead=DEAD)
    expected = dense_loss(sae, x, DEAD)
    torch.testing.assert_close(terms.total, expected)
    names, parameters = zip(*sae.named_parameters(), strict=True)
    found = torch.autograd.grad(terms.total, parameters)
    for name, a, e in zip(names, found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, e, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_gradcheck(activation):
    sae = make(activation=activation, l1_coefficient=0.3)
    x = torch.randn(4, 12, dtype=torch.float64)
    names, parameters = zip(*sae.named_parameters(), strict=True)

    def total(*values):
        # Replace, not copy: gradcheck perturbs the tensors it is given.
        return torch.func.functional_call(
            _Loss(sae), {f"sae.{n}": v for n, v in zip(names, values, strict=True)}, (x,)
        )

    inputs = tuple(p.detach().clone().requires_grad_() for p in parameters)
    torch.autograd.gradcheck(total, inputs)


class _Loss(torch.nn.Module):
    def __init__(self, sae: SAE) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, x):
        return loss(self.sae, x).total


def test_auxk_reaches_the_encoder_of_dead_features_only():
    sae, x = make(activation="topk", auxk_coefficient=1.0), torch.randn(9, 12, dtype=torch.float64)
    terms = loss(sae, x, dead=DEAD)
    grad_enc, grad_dec = torch.autograd.grad(terms.auxk, (sae.W_enc, sae.W_dec))
    for grad in (grad_enc, grad_dec):
        assert (grad[~DEAD] == 0).all() and (grad[DEAD].abs().sum() > 0)
    assert loss(sae, x, dead=torch.zeros(40, dtype=torch.bool)).auxk == 0
    assert loss(sae, x).auxk == 0
    one = torch.arange(40) == 7  # fewer dead than auxk
    assert loss(sae, x, dead=one).auxk > 0


def test_jumprelu_follows_the_paper():
    """Rajamanoharan et al. 2024, eq. 11 and 12, entry by entry."""
    pre = torch.tensor([0.10, 0.26, 0.34, 0.9], dtype=torch.float64, requires_grad=True)
    theta = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
    eps = 0.1
    inside = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    d_pre, d_theta = torch.autograd.grad((jump(pre, theta, eps) * upstream).sum(), (pre, theta))
    torch.testing.assert_close(d_pre, upstream * (pre > theta))
    torch.testing.assert_close(d_theta, -upstream * 0.3 / eps * inside)
    (d_theta,) = torch.autograd.grad((step(pre, theta, eps) * upstream).sum(), theta)
    torch.testing.assert_close(d_theta, -upstream / eps * inside)


@pytest.mark.parametrize("l0_form", ["l0", "tanh"])
def test_jumprelu_loss_against_dense(l0_form):
    fields = {"bandwidth": 0.3, "jumprelu_threshold": 0.2, "l0_coefficient": 0.5}
    sae = make(activation="jumprelu", l0_form=l0_form, **fields)
    x = torch.randn(9, 12, dtype=torch.float64)
    pre = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    theta = sae.log_threshold.exp().expand_as(pre)
    acts = jump(pre, theta, 0.3)
    x_hat = acts @ sae.W_dec + sae.b_dec
    if l0_form == "l0":
        count = step(pre.detach(), theta, 0.3).sum(1).mean()
    else:
        count = torch.tanh(4 * acts * sae.W_dec.norm(dim=1)).sum(1).mean()
    expected = (x - x_hat).square().sum(1).mean() + 0.5 * count
    found = loss(sae, x).total
    torch.testing.assert_close(found, expected)
    parameters = list(sae.parameters())
    for a, e in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(a, e)
    if l0_form == "l0":
        assert sae.encode(x).count_nonzero() == (pre > theta).sum()


def test_empty_batch_is_refused():
    with pytest.raises(InputError, match="at least one token"):
        loss(make(), torch.zeros(0, 12, dtype=torch.float64))
