"""Every site of a model is one to train on: capturing, training and evaluating end to end."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from trustbench.activations.config import ActivationsConfig
from trustbench.activations.sources import ModelSource
from trustbench.models import Site


@pytest.fixture(scope="module")
def grouped_model(tmp_path_factory, tiny_tokenizer):
    """A Llama with 4 heads of 8, 2 of them for keys and values, and an MLP of 48."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("site", get_args(Site))
def test_every_site_is_a_source_of_its_width(grouped_model, tiny_text, site):
    config = ActivationsConfig(
        model=str(grouped_model), data=str(tiny_text), site=site, context_length=16, model_rows=3
    )
    source = ModelSource(config, torch.device("cpu"), torch.float32)
    width = {"k": 16, "v": 16, "mlp_hidden": 48}.get(site, 32)
    assert list(source.widths.values()) == [width, width]
    rows = source.pull()
    assert len(rows.token_ids) == 48
    assert all(a.shape == (48, width) and a.is_contiguous() for a in rows.acts.values())


@pytest.mark.parametrize("site", ["v", "head_out", "mlp_hidden"])
def test_an_sae_is_trained_and_evaluated_there(grouped_model, tiny_text, tmp_path, site):
    import trustbench as tb

    out = tmp_path / "run"
    config = tb.TrainConfig(
        model=str(grouped_model), data=str(tiny_text), site=site, context_length=16, model_rows=4,
        tokens=2048, batch_size=256, out=str(out), sae=tb.SAEConfig(d_sae=64, k=4),
        heldout_fraction=0.25,
    )  # fmt: skip
    tb.train(config)
    found = tb.evaluate(tb.EvalConfig(run=str(out), tokens=400, spliced_tokens=200))
    assert len(found)
    for layer in found:
        assert layer["l0"] <= 4
        assert layer["ce_reconstructed"] != layer["ce_zero"] != layer["ce_original"]
