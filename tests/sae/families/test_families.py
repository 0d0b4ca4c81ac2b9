"""Every family against dense plain PyTorch in fp64, and what all families have in common."""

from __future__ import annotations

import pytest
import torch

from tests.steps.test_fused import CASES, activations
from trustbench import ops
from trustbench.errors import InputError
from trustbench.sae import SAE, SAEConfig, loss
from trustbench.sae.families import FAMILIES, family
from trustbench.sae.families.matryoshka import prefixes
from trustbench.sae.init import initialise
from trustbench.steps import FusedStep, pick

DEAD = torch.arange(40) % 3 == 0


def make(**fields) -> SAE:
    cfg = SAEConfig(**({"d_in": 12, "d_sae": 40, "unit_norm": False} | fields))
    sae = SAE(cfg, torch.float64)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return sae.train()


def assert_same_loss(sae: SAE, found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected)
    names, parameters = zip(*sae.named_parameters(), strict=True)
    mine = torch.autograd.grad(found, parameters)
    for name, a, e in zip(names, mine, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, e, msg=lambda m, name=name: f"{name}: {m}")


def pre_activations(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    return sae.centred(x) @ sae.W_enc.T + sae.b_enc


def test_gated_follows_the_paper():
    """Rajamanoharan et al. 2024, eq. 5 to 8, with dense matrices."""
    sae, x = make(activation="gated", l1_coefficient=0.3, l1_form="sum"), torch.randn(9, 12).double()
    gate = pre_activations(sae, x)
    magnitude = (sae.centred(x) @ (sae.r_mag.exp()[:, None] * sae.W_enc).T + sae.b_mag).relu()
    acts = (gate > 0) * magnitude
    assert (acts > 0).any() and ((gate > 0) & (magnitude == 0)).any()
    error = acts @ sae.W_dec + sae.b_dec - x
    frozen = gate.relu() @ sae.W_dec.detach() + sae.b_dec.detach() - x
    expected = error.square().sum(1) + 0.3 * gate.relu().sum(1) + frozen.square().sum(1)
    assert_same_loss(sae, loss(sae, x).total, expected.mean())
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.eval()(x), acts @ sae.W_dec + sae.b_dec)


@pytest.mark.parametrize("widths", [[], [5, 13], [40]])
def test_matryoshka_reconstructs_from_every_prefix(widths):
    sae, x = make(activation="matryoshka", k=5, auxk=4, prefixes=widths), torch.randn(9, 12).double()
    pre = pre_activations(sae, x)
    least = pre.flatten().topk(9 * 5).values[-1]
    acts = (pre * (pre >= least)).relu()
    expected, nested = 0.0, prefixes(sae.cfg)
    assert nested == (widths or [2, 5, 10, 20]) + ([] if widths == [40] else [40])
    for width in nested:
        error = acts[:, :width] @ sae.W_dec[:width] + sae.b_dec - x
        expected = expected + error.square().sum(1).mean() / len(nested)
    top = pre.masked_fill(~DEAD, -torch.inf).topk(4)
    e_hat = (top.values.relu()[:, :, None] * sae.W_dec[top.indices]).sum(1)
    aux = (error.detach() + e_hat).square().sum(1).mean()
    found = loss(sae, x, dead=DEAD)
    assert_same_loss(sae, found.total, expected + sae.cfg.auxk_coefficient * aux)
    torch.testing.assert_close(found.x_hat, acts @ sae.W_dec + sae.b_dec)


def test_panneal_is_a_power_of_the_activations():
    sae, x = make(activation="panneal", l1_coefficient=0.3), torch.randn(9, 12).double()
    for p in (1.0, 0.35):
        sae.lp_p.fill_(p)
        power = sae.lp_p.double()
        acts = pre_activations(sae, x).relu()
        error = acts @ sae.W_dec + sae.b_dec - x
        size = ((acts + 1e-6) ** power - 1e-6**power).sum(1)
        coefficient = sae.lp_coefficient.double()
        assert_same_loss(sae, loss(sae, x).total, (error.square().sum(1) + coefficient * size).mean())


def test_panneal_keeps_its_penalty_as_the_power_falls():
    sae = SAE(SAEConfig(d_in=24, d_sae=96, activation="panneal", l1_coefficient=0.3, p_end=0.3))
    step, sizes, powers = FusedStep(sae), [], []
    x = activations(200, 24)
    for number in range(120):
        step.step(x, 0.0, done=number / 120)  # weights stand still
        code = sae.encode_sparse(x)
        p = sae.lp_p.item()
        sizes.append(sae.lp_coefficient.item() * ((code.values + 1e-6) ** p - 1e-6**p).sum().item())
        powers.append(round(p, 4))
    assert powers[0] == powers[59] == 1.0 and powers[-1] == pytest.approx(0.3 + 0.07, abs=1e-3)
    assert sorted(set(powers), reverse=True) == [round(1 - 0.07 * i, 4) for i in range(10)]
    assert max(sizes) / min(sizes) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_reconstructs_its_target(skip):
    sae = make(k=5, auxk=0, d_out=7, skip=skip, normalize="expected_norm")
    sae.input_scale.fill_(0.5)
    sae.output_scale.fill_(2.0)
    x, y = torch.randn(9, 12).double(), torch.randn(9, 7).double()
    pre = 0.5 * x @ sae.W_enc.T + sae.b_enc  # b_dec lives where the target does
    kept = torch.zeros_like(pre).scatter(1, pre.topk(5).indices, 1.0)
    y_hat = (pre * kept).relu() @ sae.W_dec + sae.b_dec
    if skip:
        y_hat = y_hat + 0.5 * x @ sae.W_skip.T
    found = loss(sae, x, target=y)
    assert_same_loss(sae, found.total, (y_hat - 2 * y).square().sum(1).mean())
    torch.testing.assert_close(sae(x), y_hat / 2)
    torch.testing.assert_close(sae.fold()(x), y_hat / 2)
    with pytest.raises(InputError, match=r"target\.shape=\[9, 12\]: expected \[\.\.\., d_out=7\]"):
        loss(sae, x)


def test_a_transcoder_starts_from_the_best_linear_map():
    """A target that is linear in the input is nearly reconstructed by directions and their images."""
    x = torch.randn(4000, 12)
    y = x @ torch.randn(12, 7) + 3.0
    explained = {}
    for tied in (True, False):
        sae = SAE(SAEConfig(d_in=12, d_out=7, d_sae=64, k=16, auxk=0, tied_init=tied))
        initialise(sae, x, target=y)
        error = (sae.train()(x) - y).square().sum() / (y - y.mean(0)).square().sum()
        explained[tied] = error.item()
    assert explained[True] < 0.5 < explained[False]
    with pytest.raises(InputError, match="target=None"):
        initialise(sae, x)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_says_what_it_is_and_survives_a_file(name, tmp_path):
    found = family(name)
    assert found.name == name and found.about and found.uses <= set(SAEConfig.__dataclass_fields__)
    for fields in ({}, {"d_out": 7, "skip": True}):
        sae = SAE(SAEConfig(d_in=12, d_sae=40, k=5, activation=name, **fields))
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        sae.threshold.fill_(0.3)
        sae.save(tmp_path / name)
        again, x = SAE.load(tmp_path / name), torch.randn(5, 12)
        assert again.cfg == sae.cfg and torch.equal(again(x), sae.eval()(x))
        assert again(x).shape == (5, sae.cfg.width_out)
        assert f"{name}, d_in=12" in repr(again)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_learns(name):
    """50 steps on data of a few directions explain most of it, on the step that is picked."""
    fields = {"relu": {"l1_coefficient": 0.02}, "panneal": {"l1_coefficient": 0.02}}
    fields["gated"] = fields["relu"]
    cfg = SAEConfig(d_in=24, d_sae=96, activation=name, **fields.get(name, {"k": 6}))
    sae = SAE(cfg)
    x = activations(512, 24)
    initialise(sae, x)
    step = pick(sae, matmul_dtype="fp32")
    first = step.step(x, 3e-3, measure=True).fvu
    for number in range(50):
        last = step.step(x, 3e-3, done=number / 50, measure=True)
    assert last.fvu < 0.25 and last.fvu < first
    assert 0 < last.l0 < 60


def test_what_a_family_refuses():
    for fields, message in (
        ({"activation": "topk", "k": 41}, r"k=41: expected an integer in \[1, d_sae=40\]"),
        ({"activation": "matryoshka", "prefixes": [9, 9]}, r"prefixes=\[9, 9\]: expected ascending"),
        ({"activation": "matryoshka", "prefixes": [50]}, r"prefixes=\[50\]"),
        ({"activation": "gatd"}, "activation='gatd'.*gated"),
    ):
        with pytest.raises(InputError, match=message):
            SAEConfig(d_in=12, d_sae=40, **fields)
    with pytest.raises(InputError, match="skip=True: expected false"):
        SAE(SAEConfig(d_in=12, d_sae=40, skip=True))


def test_the_padded_form_of_terms_is_the_exact_one():
    """With room, as a GPU's steps ask for it: the same losses and gradients of the entries."""
    from trustbench.sae.families.base import How

    for case in ("relu-norm", "jumprelu", "matryoshka"):
        sae = SAE(SAEConfig(d_in=24, d_sae=96, k=6, **CASES[case]))
        x = activations(33, 24)
        with torch.no_grad(), ops.trusted():
            exact = sae.family.terms(sae, x, x, How())
            room = sae.family.terms(sae, x, x, How(room=33 * 96))
        assert room.fits.all()
        for name in ("error", "squared", "bias"):
            torch.testing.assert_close(getattr(room, name), getattr(exact, name))
        nnz = len(exact.code.values)
        assert torch.equal(room.code.values[:nnz], exact.code.values)
        assert not room.code.values[nnz:].any()
        torch.testing.assert_close(room.main.residual, exact.main.residual)
        assert torch.equal(room.main.code.row_offsets, exact.main.code.row_offsets)
