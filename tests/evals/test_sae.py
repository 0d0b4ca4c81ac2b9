"""evaluate_saes against brute force, and at its two ends: a perfect SAE and an empty one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trustbench.data import Documents, TokenStream
from trustbench.errors import CheckpointError, DataError, InputError
from trustbench.evals import EvalConfig, evaluate, evaluate_saes
from trustbench.evals import sae as evals_sae
from trustbench.models import ActivationCapture, load_model, resolve_hook_points
from trustbench.report import Table
from trustbench.sae import SAE, SAEConfig
from trustbench.sae.wiring import Wiring

NAME = "gpt_neox.layers.1"


@pytest.fixture
def model(tiny_model_dir):
    return load_model(str(tiny_model_dir))


@pytest.fixture
def batches(model, tiny_text):
    stream = TokenStream(Documents(str(tiny_text)), model[1], 32, 4, repeat=False)
    return [next(stream) for _ in range(6)]


def row(table):
    """The only row, its columns as attributes."""
    (only,) = table
    return SimpleNamespace(**only)


def test_a_perfect_sae_recovers_everything(model, batches):
    """relu over ±identity reconstructs x exactly."""
    sae = SAE(SAEConfig(d_in=16, d_sae=32, activation="relu"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(16), -torch.eye(16)]))
        sae.W_dec.copy_(sae.W_enc)
    layer = row(evaluate_saes({NAME: sae}, model[0], batches))
    assert layer.fvu == pytest.approx(0, abs=1e-10) and layer.cosine == pytest.approx(1)
    assert layer.loss_recovered == pytest.approx(1, abs=1e-4)
    assert layer.ce_reconstructed == pytest.approx(layer.ce_original, abs=1e-5)
    assert layer.l0 == pytest.approx(16) and layer.dead_fraction == 0


def test_an_empty_sae_is_zero_ablation(model, batches):
    sae = SAE(SAEConfig(d_in=16, d_sae=32, k=4))
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    layer = row(evaluate_saes({NAME: sae}, model[0], batches))
    assert layer.ce_reconstructed == pytest.approx(layer.ce_zero, abs=1e-6)
    assert layer.loss_recovered == pytest.approx(0, abs=1e-5)
    assert layer.l0 == 0 and layer.dead_fraction == 1 and sum(layer.density_histogram) == 0
    with torch.no_grad():  # a decoder bias at the mean is mean ablation
        acts = [a[NAME][b.mask] for a, b in zip(_captured(model[0], batches), batches, strict=True)]
        sae.b_dec.copy_(torch.cat(acts).mean(0))
    layer = row(evaluate_saes({NAME: sae}, model[0], batches))
    assert layer.fvu == pytest.approx(1, abs=1e-5)
    assert layer.ce_reconstructed == pytest.approx(layer.ce_mean, abs=1e-5)


def _captured(model, batches):
    capture = ActivationCapture(model, resolve_hook_points(model, [NAME]))
    return [capture.run(b.input_ids) for b in batches]


def test_figures_against_brute_force(model, batches):
    sae = SAE(SAEConfig(d_in=16, d_sae=64, k=4, seed=3))
    layer = row(evaluate_saes({"layers.1": sae}, model[0], batches))
    assert layer.hook_point == NAME
    x = torch.cat(
        [a[NAME][b.mask] for a, b in zip(_captured(model[0], batches), batches, strict=True)]
    )
    assert layer.tokens == len(x)
    acts = sae.encode(x)
    x_hat = sae.decode(acts)
    expected = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert layer.fvu == pytest.approx(expected.item(), rel=1e-4)
    fired = (acts > 0).double().mean(0)
    assert layer.dead_fraction == pytest.approx((fired == 0).double().mean().item())
    assert layer.dense_fraction == pytest.approx((fired > 0.1).double().mean().item())
    assert layer.l0 == pytest.approx((acts > 0).sum(1).double().mean().item())
    assert sum(layer.density_histogram) == (fired > 0).sum()
    losses = [
        torch.nn.functional.cross_entropy(row[:-1], ids[1:], reduction="none")[mask[1:]]
        for b in batches
        for row, ids, mask in zip(model[0](b.input_ids).logits, b.input_ids, b.mask, strict=True)
    ]
    assert layer.ce_original == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert layer.predicted_tokens == len(torch.cat(losses))


def test_the_evaluation_is_a_table_of_a_row_a_layer(model, batches, tmp_path):
    sae = SAE(SAEConfig(d_in=16, d_sae=64, k=4))
    table = evaluate_saes({NAME: sae}, model[0], batches, tokens=50)
    table.write(tmp_path / "eval.jsonl")
    assert Table.read(tmp_path / "eval.jsonl") == table
    layer = row(table)
    assert 50 <= layer.tokens < 300 and layer.l0 == pytest.approx(4, abs=1)
    assert len(layer.density_edges) == len(layer.density_histogram) + 1
    assert NAME in table.text() and "loss_recovered" in table.text()


def test_a_share_of_nothing_is_not_defined(model, batches, monkeypatch):
    measured = evals_sae._cross_entropy
    monkeypatch.setattr(evals_sae, "_cross_entropy", lambda *of: 0 * measured(*of) + 2.0)
    sae = SAE(SAEConfig(d_in=16, d_sae=64, k=4))
    layer = row(evaluate_saes({NAME: sae}, model[0], batches))
    assert layer.loss_recovered is None and layer.ce_zero == 2.0


def test_bad_input_is_named(model, tmp_path):
    sae = SAE(SAEConfig(d_in=16, d_sae=64, k=4))
    with pytest.raises(DataError, match="no two tokens"):
        evaluate_saes({NAME: sae}, model[0], [])
    with pytest.raises(InputError, match="tokens=0"):
        evaluate_saes({NAME: sae}, model[0], [], tokens=0)
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        evaluate(EvalConfig(run=str(tmp_path)))


def test_a_transcoder_is_judged_by_what_it_writes(model, batches):
    """A constant one is the mean of its target in the target's place; a skip of ones is perfect."""
    read, write = f"{NAME}.mlp.input", f"{NAME}.mlp"
    acts = ActivationCapture(model[0], resolve_hook_points(model[0], [read, write]))
    target = torch.cat([acts.run(b.input_ids)[write][b.mask] for b in batches])
    sae = SAE(SAEConfig(d_in=16, d_out=16, d_sae=32, k=4))
    sae.wiring = Wiring(write, read, write)
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
        sae.b_dec.copy_(target.mean(0))
    layer = row(evaluate_saes({write: sae}, model[0], batches))
    assert layer.hook_point == write and layer.fvu == pytest.approx(1, abs=1e-4)
    assert layer.ce_reconstructed == pytest.approx(layer.ce_mean, abs=1e-5)
    assert abs(layer.ce_mean - layer.ce_original) > 1e-6
    same = SAE(SAEConfig(d_in=16, d_out=16, d_sae=32, k=4, skip=True))
    same.wiring = Wiring(write, write, write)
    with torch.no_grad():
        same.b_enc.fill_(-1e6)
        same.W_skip.copy_(torch.eye(16))
    layer = row(evaluate_saes({write: same}, model[0], batches))
    assert layer.fvu == pytest.approx(0, abs=1e-9)
    assert layer.loss_recovered == pytest.approx(1, abs=1e-4)
    same.wiring = None
    with pytest.raises(InputError, match="a transcoder with its wiring"):
        evaluate_saes({write: same}, model[0], batches)


def test_nested_dictionaries_have_an_fvu_each(model, batches):
    sae = SAE(SAEConfig(d_in=16, d_sae=32, k=4, activation="matryoshka", prefixes=[8, 20]))
    sae.threshold.fill_(0.1)
    layer = row(evaluate_saes({NAME: sae}, model[0], batches))
    assert layer.prefixes == [8, 20, 32] and len(layer.prefix_fvu) == 3
    assert layer.prefix_fvu[2] == pytest.approx(layer.fvu)
    x = torch.cat(
        [a[NAME][b.mask] for a, b in zip(_captured(model[0], batches), batches, strict=True)]
    )
    acts = sae.encode(x) * (torch.arange(32) < 8)
    error = (sae.decode(acts) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert layer.prefix_fvu[0] == pytest.approx(error.item(), rel=1e-4)
