"""Capture from every family: the right tensors, one forward, no more of it than needed."""

from __future__ import annotations

import pytest
import torch
import transformers

from trustbench.errors import InputError
from trustbench.models import (
    ActivationCapture,
    all_hook_points,
    hooked,
    load_model,
    resolve_hook_points,
)

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, "head_dim": 8,
}  # fmt: skip
NEOX = {k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "head_dim")}
FAMILIES = {
    "GPTNeoX": NEOX,
    "GPT2": {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "Llama": SMALL,
    "Qwen3": SMALL,
    "Gemma": SMALL,
    "Gemma2": SMALL | {"query_pre_attn_scalar": 8},
    "Gemma3": SMALL | {"query_pre_attn_scalar": 8},
}


@pytest.fixture(params=FAMILIES, scope="module")
def model(request):
    torch.manual_seed(0)
    name = request.param
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    model_name = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    config = getattr(transformers, config_name)(**FAMILIES[name])
    return getattr(transformers, model_name)(config).eval().requires_grad_(False)


IDS = torch.arange(30).view(2, 15) % 64


def test_residual_streams_are_the_models_own(model):
    points = resolve_hook_points(model, "all")
    acts = ActivationCapture(model, points).run(IDS)
    hidden = model(IDS, output_hidden_states=True).hidden_states
    assert list(acts) == [p.name for p in points] and len(points) == 3
    for i in (0, 1):  # the last hidden state comes after the final norm
        torch.testing.assert_close(acts[points[i].name], hidden[i + 1])
    pre = ActivationCapture(model, resolve_hook_points(model, "all", "resid_pre")).run(IDS)
    for i, value in enumerate(pre.values()):
        torch.testing.assert_close(value, hidden[i])


def test_stream_is_the_sum_of_its_parts(model):
    """attention and MLP outputs, in the families that add them as they are."""
    if type(model).__name__.startswith(("Gemma2", "Gemma3")):
        pytest.skip("these normalise module outputs before adding them")
    names = ["blocks.1.hook_resid_pre", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"]
    points = resolve_hook_points(model, [*names, "blocks.1.hook_resid_post"])
    pre, attention, mlp, post = ActivationCapture(model, points).run(IDS).values()
    torch.testing.assert_close(pre + attention + mlp, post)


def test_stops_after_the_last_needed_layer_and_never_runs_the_head(model):
    calls = []

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()
    later = resolve_hook_points(model, [2])[0].module
    handles = [
        later.register_forward_hook(lambda *_: calls.append("layer 2")),
        model.get_output_embeddings().register_forward_hook(lambda *_: calls.append("head")),
    ]
    ActivationCapture(model, resolve_hook_points(model, [0, 1])).run(IDS)
    assert calls == []
    ActivationCapture(model, resolve_hook_points(model, "all")).run(IDS)
    for handle in handles:
        handle.remove()
    assert calls == ["layer 2"]
    assert hooks() == before


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "mlp_in", "mlp_out", "attn_out"])
def test_replacing_changes_the_model_there(model, site):
    point = resolve_hook_points(model, [1], site)[0]
    plain = model(IDS).logits
    seen = []
    with hooked(model, {point: lambda x: seen.append(x.clone()) or x}):
        torch.testing.assert_close(model(IDS).logits, plain)
    captured = ActivationCapture(model, [point]).run(IDS)[point.name]
    torch.testing.assert_close(seen[0], captured)
    with hooked(model, {point: torch.zeros_like}):
        assert not torch.allclose(model(IDS).logits, plain)
    torch.testing.assert_close(model(IDS).logits, plain)


def test_three_spellings_name_one_point(model):
    point = resolve_hook_points(model, [2])[0]
    for spelling in (point.name, *point.aliases, "2"):
        assert resolve_hook_points(model, [spelling]) == [point]
        assert resolve_hook_points(model, spelling) == [point]
    assert "blocks.2.hook_resid_post" in point.aliases
    assert len(all_hook_points(model)) == 33


def test_unknown_layers_are_refused_with_the_nearest_name(model):
    with pytest.raises(InputError, match=r"layers=3: expected layer numbers in \[0, 2\]"):
        resolve_hook_points(model, [3])
    with pytest.raises(InputError, match=r"near: .*hook_resid_post"):
        resolve_hook_points(model, ["blocks.1.hook_resid_pos"])
    with pytest.raises(InputError, match="site='resid'"):
        resolve_hook_points(model, "all", "resid")
    with pytest.raises(InputError, match="at least one layer"):
        resolve_hook_points(model, [])


def test_load_model(tiny_model_dir, tmp_path):
    loaded, tokenizer = load_model(str(tiny_model_dir))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert next(loaded.parameters()).dtype == torch.float32 and tokenizer.eos_token == "<end>"
    with pytest.raises(InputError, match="expected a folder or hub name"):
        load_model(str(tmp_path))
