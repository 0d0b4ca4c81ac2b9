"""The shipped model and text, and the demo end to end (small)."""

from __future__ import annotations

import json
import math
from itertools import islice

import pytest
import torch

from trustbench.capture import ActivationCapture, load_model, resolve_hook_points
from trustbench.data import Documents, TokenStream
from trustbench.demo import assets
from trustbench.demo.passages import best_features
from trustbench.demo.run import run_demo
from trustbench.sae import SAE, SAEConfig


@pytest.fixture(scope="module")
def model():
    return load_model(str(assets.MODEL))


def test_shipped_model_is_as_its_record_says(model):
    record = json.loads(assets.TRAINING.read_text())
    parameters = sum(p.numel() for p in model[0].parameters())
    assert record["parameters"] == parameters and 3e6 < parameters < 8e6
    assert model[0].config.num_hidden_layers == 6
    size = sum(f.stat().st_size for f in assets.MODEL.iterdir())
    assert size < 12e6
    ids = torch.tensor(model[1](assets.HELDOUT_TEXT.read_text()).input_ids)
    assert len(ids) == record["heldout_tokens"]
    total = count = 0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 256):
            window = ids[start : start + 257]
            logits = model[0](window[None, :-1]).logits[0]
            total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
            count += len(window) - 1
    # The record was made in bf16; here the same weights run in fp32.
    assert math.exp(total / count) == pytest.approx(record["heldout_perplexity"], rel=0.01)


def test_heldout_text_is_not_in_the_training_text():
    train, heldout = assets.TRAIN_TEXT.read_text(), assets.HELDOUT_TEXT.read_text()
    assert 0.04 < len(heldout) / len(train) < 0.07
    assert heldout[1000:1200] not in train


def test_passages_are_the_strongest(model, tmp_path):
    name = "gpt_neox.layers.2"
    sae = SAE(SAEConfig(d_in=256, d_sae=512, k=16)).eval()

    def rows():
        stream = TokenStream(Documents(str(assets.HELDOUT_TEXT)), model[1], 64, 8, repeat=False)
        return list(islice(stream, 8))

    found = best_features({name: sae}, *model, rows(), features=3, passages=2)[name]
    assert found
    capture = ActivationCapture(model[0], resolve_hook_points(model[0], [name]))
    acts = torch.cat([sae.encode(capture.run(b.input_ids)[name][b.mask]) for b in rows()])
    for feature in found:
        column = acts[:, feature.number]
        assert feature.largest == pytest.approx(column.max().item())
        assert feature.density == pytest.approx((column > 0).float().mean().item())
        assert 1e-4 < feature.density < 0.02
        for passage in feature.passages:
            assert len(passage.tokens) == len(passage.activations)
            assert 0 < max(passage.activations) <= feature.largest + 1e-6
        peaks = [max(p.activations) for p in feature.passages]
        assert peaks == sorted(peaks, reverse=True)


def test_demo_end_to_end(tmp_path, capsys):
    path = run_demo(tmp_path / "demo", tokens=30_000)
    assert path.is_file() and path.stat().st_size > 20_000
    assert len(list((tmp_path / "demo" / "final").iterdir())) == 6
    report = json.loads((tmp_path / "demo" / "eval.json").read_text())
    assert all(layer["loss_recovered"] > 0.3 for layer in report["layers"].values())
    assert "report.html" in capsys.readouterr().out
