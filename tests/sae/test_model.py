"""SAE: encode, decode, files, folding."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from trustbench.errors import CheckpointError, InputError
from trustbench.sae import SAE, SAEConfig, load_saes

ACTIVATIONS = ["topk", "batchtopk", "relu", "jumprelu"]


def make(activation="topk", **changes) -> SAE:
    fields = {"d_in": 12, "d_sae": 40, "k": 5, "activation": activation} | changes
    sae = SAE(SAEConfig(**fields))
    with torch.no_grad():
        sae.b_enc.normal_(std=0.1)
        sae.b_dec.normal_(std=0.1)
        sae.threshold.fill_(0.3)
    return sae


def dense_encode(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    """The definition, without ops."""
    pre = (x * sae.input_scale - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    kind = sae.cfg.activation
    if kind == "relu":
        return pre.relu()
    if kind == "jumprelu":
        return pre * (pre > sae.log_threshold.exp())
    if kind == "topk":
        top = pre.topk(sae.cfg.k)
        return torch.zeros_like(pre).scatter(1, top.indices, top.values).relu()
    if not sae.training:
        return pre * (pre > sae.threshold)
    least = pre.flatten().topk(len(x) * sae.cfg.k).values[-1]
    return (pre * (pre >= least)).relu()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matches_the_definition(activation, training):
    sae = make(activation, normalize="expected_norm").train(training)
    sae.input_scale.fill_(1.7)
    x = torch.randn(33, 12)
    acts = dense_encode(sae, x)
    x_hat = (acts @ sae.W_dec + sae.b_dec) / sae.input_scale
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae(x), x_hat)
    torch.testing.assert_close(sae.decode(acts), x_hat)
    torch.testing.assert_close(sae.decode(sae.encode_sparse(x)), x_hat)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_any_leading_dimensions_and_bf16(activation):
    sae = make(activation).eval()
    x = torch.randn(3, 7, 12)
    torch.testing.assert_close(sae(x), sae(x.view(21, 12)).view(3, 7, 12))
    assert sae.encode(x).shape == (3, 7, 40)
    half = copy.deepcopy(sae).to(torch.bfloat16)
    out = half(x.bfloat16())
    assert out.dtype == torch.bfloat16 and out.shape == x.shape
    assert (out.float() - sae(x)).square().mean() < 0.1 * x.square().mean()


def test_initialisation():
    tied, untied = make(), SAE(SAEConfig(d_in=12, d_sae=40, k=5, tied_init=False))
    torch.testing.assert_close(tied.W_dec.norm(dim=1), torch.ones(40))
    assert torch.equal(tied.W_enc, tied.W_dec)
    assert not torch.equal(untied.W_enc, untied.W_dec)
    assert torch.equal(tied.W_dec, make().W_dec)
    assert not torch.equal(tied.W_dec, make(seed=1).W_dec)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fold_takes_activations_as_they_are(activation):
    sae = make(activation, normalize="expected_norm").eval()
    sae.input_scale.fill_(0.37)
    folded = sae.fold()
    x = torch.randn(20, 12)
    assert folded.cfg.normalize == "none"
    torch.testing.assert_close(folded(x), sae(x))
    torch.testing.assert_close(folded.encode(x), sae.encode(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_save_and_load(activation, tmp_path):
    sae = make(activation).eval()
    sae.save(tmp_path / "model.layers.10")
    sae.save(tmp_path / "model.layers.9")
    loaded = SAE.load(tmp_path / "model.layers.9")
    x = torch.randn(20, 12)
    assert torch.equal(loaded(x), sae(x)) and loaded.cfg == sae.cfg and not loaded.training
    assert list(load_saes(tmp_path)) == ["model.layers.9", "model.layers.10"]


def test_damaged_files_are_named(tmp_path):
    make().save(tmp_path)
    weights, config = tmp_path / "sae.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"sae\.safetensors: truncated or corrupt"):
        SAE.load(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"sae\.safetensors: no such file"):
        SAE.load(tmp_path)
    weights.write_bytes(whole)
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"d_sae": 41}))
    with pytest.raises(CheckpointError, match=r"W_... has shape \[40, 12\], expected \[41, 12\]"):
        SAE.load(tmp_path)
    config.write_text(json.dumps(fields | {"d_sea": 41}))
    with pytest.raises(CheckpointError, match="did you mean 'd_sae'"):
        SAE.load(tmp_path)
    config.write_text(json.dumps(fields | {"activation": "relu"} | {"format": "other"}))
    with pytest.raises(CheckpointError, match="expected format"):
        SAE.load(tmp_path)
    config.write_text("{")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        SAE.load(tmp_path)


def test_any_optimiser_can_keep_the_decoder_at_unit_norm():
    sae = make()
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.1)
    sae(torch.randn(8, 12)).square().sum().backward()
    sae.project_decoder_grad_()
    along = (sae.W_dec.grad * sae.W_dec).sum(1)
    torch.testing.assert_close(along, torch.zeros(40), atol=1e-5, rtol=0)
    optimizer.step()
    sae.normalize_decoder_()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))


def test_compiles_whole():
    sae = make()
    x = torch.randn(9, 12)
    torch.testing.assert_close(torch.compile(sae, fullgraph=True)(x), sae(x))


def test_bad_input_is_named():
    sae = make()
    with pytest.raises(InputError, match=r"x\.shape=\[3, 11\]: expected \[\.\.\., d_in=12\]"):
        sae(torch.zeros(3, 11))
    with pytest.raises(InputError, match=r"x\.dtype=torch\.int64"):
        sae(torch.zeros(3, 12, dtype=torch.int64))
    with pytest.raises(InputError, match=r"acts\.shape"):
        sae.decode(torch.zeros(3, 41))
    with pytest.raises(InputError, match="d_in=0"):
        SAE(SAEConfig(d_sae=8, k=2))
    with pytest.raises(InputError, match="needs the threshold that training sets"):
        SAE(SAEConfig(d_in=12, d_sae=40, k=5, activation="batchtopk")).eval()(torch.zeros(1, 12))
