"""The shipped model and text."""

from __future__ import annotations

import json
import math

import pytest
import torch

from trustbench.models import load_model
from trustbench.studies.demo import assets


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
