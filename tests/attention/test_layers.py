"""attention: any transformers family, against its own eager attention and full matrices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from trustbench.attention import AttentionFiles, LinearAttention, capture
from trustbench.errors import InputError
from trustbench.models.inline_attention import Call, called

T, VOCABULARY, WINDOW = 41, 60, 7
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0,
         "num_attention_heads": 4, "intermediate_size": 48,
         "max_position_embeddings": 64}  # fmt: skip
GQA = SMALL | {"num_key_value_heads": 2, "head_dim": 16}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
          "linear_value_head_dim": 8, "linear_conv_kernel_dim": 3,
          "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
FALCON = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
          "num_attention_heads": 4}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
           "shared_expert_intermediate_size": 16}  # fmt: skip

FAMILIES: dict[str, Callable[[], Any]] = {
    "GPT-NeoX, partial rotary": lambda: tf.GPTNeoXConfig(**SMALL, rotary_pct=0.25),
    "GPT-2": lambda: tf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64
    ),
    "Llama": lambda: tf.LlamaConfig(**GQA),
    "Llama, multi-query": lambda: tf.LlamaConfig(**GQA | {"num_key_value_heads": 1}),
    "Qwen3": lambda: tf.Qwen3Config(**GQA),
    "Gemma 2": lambda: tf.Gemma2Config(
        **GQA, sliding_window=WINDOW, attn_logit_softcapping=2.0, query_pre_attn_scalar=16
    ),
    "Gemma 3": lambda: tf.Gemma3TextConfig(
        **GQA, sliding_window=WINDOW, query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "Mistral": lambda: tf.MistralConfig(**GQA, sliding_window=WINDOW),
    "gpt-oss": lambda: tf.GptOssConfig(
        **GQA, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "GPT-Neo": lambda: tf.GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48,
        attention_types=[[["global", "local"], 1]], window_size=WINDOW, max_position_embeddings=64,
    ),
    "Falcon, multi-query": lambda: tf.FalconConfig(**FALCON),
    "Falcon, grouped": lambda: tf.FalconConfig(
        **FALCON, num_kv_heads=2, new_decoder_architecture=True
    ),
    "Falcon, ALiBi": lambda: tf.FalconConfig(**FALCON, multi_query=False, alibi=True),
    "Falcon, ALiBi, multi-query": lambda: tf.FalconConfig(**FALCON, alibi=True),
    "BLOOM": lambda: tf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "MPT": lambda: tf.MptConfig(
        vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=64
    ),
    "MPT, clipped": lambda: tf.MptConfig(
        vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=64,
        attn_config={"clip_qkv": 0.5, "softmax_scale": 0.2},
    ),
    "Qwen3-Next": lambda: tf.Qwen3NextConfig(**GQA, **LINEAR, **EXPERTS),
    "Qwen3.5": lambda: tf.Qwen3_5TextConfig(**GQA, **LINEAR),
}  # fmt: skip
families = pytest.mark.parametrize("family", FAMILIES)


def model_of(family: str) -> Any:
    config = FAMILIES[family]()
    # transformers' eager attention of Falcon adds ALiBi twice, to the mask and to the scores.
    kind = "sdpa" if family.startswith("Falcon, ALiBi") else "eager"
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=kind).eval()
    for name, parameter in model.named_parameters():  # rows that are not all alike
        if parameter.dim() == 2 and not name.endswith("embed_in.weight"):
            nn.init.normal_(parameter, std=0.3)
        elif name.endswith("sinks"):
            nn.init.normal_(parameter)
    return model


def statistics(p: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Of full matrices [B, H, T, T], in fp64."""
    p = p.double()
    at = torch.arange(p.shape[3])
    away = at[:, None] - at
    total = p.sum(3)
    diagonal = p.diagonal(dim1=2, dim2=3)
    previous = torch.zeros_like(diagonal)
    previous[..., 1:] = p.diagonal(-1, 2, 3)
    wanted = (targets[:, None, :, :, None] == at).double()
    return {
        "entropy": -torch.where(p > 0, p * p.clamp_min(1e-300).log(), 0).sum(3),
        "distance": torch.where(total > 0, (p * away).sum(3) / total.clamp_min(1e-30), 0),
        "last": (p * ((away >= 0) & (away < 5))).sum(3),
        "self_": diagonal,
        "previous": previous,
        "top_p": p.sort(dim=3, descending=True).values[..., :3],
        "targets": torch.einsum("bhts,bztms->bhtm", p, wanted),
    }


def compare(model: Any, ids: Tensor, real: Tensor | None = None, **given: Any) -> dict[str, Any]:
    """Capture, and the same from the model's own eager attention; rows that are real."""
    targets = torch.randint(-1, ids.shape[1], (*ids.shape, 2), dtype=torch.int32)
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: (
                seen.__setitem__(name, out[0]) if out[1] is not None else None
            )
        )
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Attention")
    ]
    outputs: list[Tensor] = []
    last = model.base_model.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    mask = {} if real is None else {"attention_mask": real.long()}
    full: list[Tensor] = []

    def attend(call: Call) -> Tensor:  # the values are a unit matrix: the probabilities come out
        full.append(
            call.run(call.q, call.k, torch.eye(ids.shape[1]).expand(*call.q.shape[:2], -1, -1))
        )
        return call.run(call.q, call.k, call.v)

    fused = model.config._attn_implementation == "sdpa"
    with torch.no_grad(), called(model, attend) if fused else nullcontext():
        results = model(ids, output_attentions=not fused, use_cache=False, **mask, **given)
    full = full or results.attentions
    eager = dict(seen)
    some = torch.tensor([0, T - 1, 7])
    found = capture(
        model, ids, targets=targets, top=3, last_n=5, rows=some, by_distance=True, **mask, **given
    )
    for hook in (*hooks, last):
        hook.remove()
    patterns = [name for name, a in found.items() if not isinstance(a, LinearAttention)]
    assert len(full) == len(patterns) and (fused or set(patterns) <= set(eager))
    rows = torch.ones_like(ids, dtype=torch.bool) if real is None else real
    torch.testing.assert_close(outputs[1][rows], outputs[0][rows], rtol=2e-5, atol=2e-5)
    for name, p in zip(patterns, full, strict=True):
        for what, wanted in statistics(p, targets).items():
            mine = getattr(found[name], what).double()
            each = rows[:, None].expand(*mine.shape[:3])
            # Eager's own fp32 softmax of a whole model before it is not more exact.
            torch.testing.assert_close(
                mine[each],
                wanted[each],
                rtol=1e-5,
                atol=2e-6,
                msg=lambda m, name=name, what=what: f"{name} {what}: {m}",
            )
        heads = found[name]
        there = rows[:, some][:, None].expand(heads.pattern.shape[:3])
        torch.testing.assert_close(heads.pattern[there], p[:, :, some][there], rtol=1e-4, atol=2e-6)
        torch.testing.assert_close(
            heads.by_distance, mean_by_distance(p, heads.visible), rtol=1e-4, atol=2e-6
        )
    return found


def mean_by_distance(p: Tensor, visible: Tensor) -> Tensor:
    """Along the diagonals of full matrices, over the pairs that are visible."""
    means = torch.zeros(p.shape[1], p.shape[3])
    for away in range(p.shape[3]):
        diagonal = p.diagonal(-away, 2, 3)  # [B, H, queries]
        seen = (diagonal > 0).any(1, keepdim=True) & (visible[:, None, away:] > 0)
        if seen.any():
            means[:, away] = (diagonal * seen).sum((0, 2)) / seen.sum()
    return means


@families
def test_it_equals_eager_attention_and_full_matrices(family):
    model = model_of(family)
    before = model.config._attn_implementation
    found = compare(model, torch.randint(1, VOCABULARY, (2, T)))
    assert len(found) == 2 and model.config._attn_implementation == before
    heads = {a.entropy.shape[1] for a in found.values() if not isinstance(a, LinearAttention)}
    assert heads == {4}


INLINE = [name for name in FAMILIES if name.split(",")[0] in ("GPT-Neo", "Falcon", "BLOOM", "MPT")]


@pytest.mark.parametrize("family", ["Llama", "Mistral", "gpt-oss", "GPT-2", *INLINE])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_looked_at(family, side):
    real = torch.ones(2, T, dtype=torch.bool)
    real[1, : T // 3] = False
    if side == "right":
        real = real.flip(1)
    model, ids = model_of(family), torch.randint(1, VOCABULARY, (2, T))
    found = compare(model, ids, real)
    for a in found.values():
        assert (a.entropy.transpose(1, 2)[~real] == 0).all()
        first = a.first.transpose(1, 2)[real]
        assert (first >= 0).all() and (first > 0).any()


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Mistral"])
def test_packed_documents_do_not_see_each_other(family):
    lengths = (9, 20, 12)
    position = torch.cat([torch.arange(n) for n in lengths])[None]
    compare(model_of(family), torch.randint(1, VOCABULARY, (1, T)), position_ids=position)


@pytest.mark.parametrize("family", ["Qwen3-Next", "Qwen3.5"])
def test_linear_attention_layers_tell_what_they_have_instead(family):
    model, ids = model_of(family), torch.randint(1, VOCABULARY, (2, T))
    found = capture(model, ids)
    linear = next(a for a in found.values() if isinstance(a, LinearAttention))
    assert linear.decay.shape == linear.write.shape == (2, T, 4)
    assert ((linear.decay >= 0) & (linear.decay <= 1)).all()
    assert ((linear.write > 0) & (linear.write < 1)).all()
    torch.testing.assert_close(linear.look_back, 1 / (1 - linear.decay.mean(1)))
    assert linear.state_norm.shape == (2, 4) and (linear.state_norm > 0).all()
    # The state is the rule's own: one token more changes it, another text's is different.
    assert not torch.equal(
        capture(model, ids[:, :-1])[next(iter(found))].state_norm, linear.state_norm
    )


def test_layers_go_to_files_as_they_are_captured(tmp_path):
    model, ids = model_of("Qwen3.5"), torch.randint(1, VOCABULARY, (2, T))
    kept = capture(model, ids, divergence=True, top=2)
    files = capture(model, ids, divergence=True, top=2, out=tmp_path / "acts")
    again = AttentionFiles(tmp_path / "acts")
    assert list(kept) == list(files) == list(again)
    for name, layer in kept.items():
        for mine, theirs in zip(again[name], layer, strict=True):
            assert (mine is None and theirs is None) or torch.equal(mine, theirs)
    assert isinstance(again[next(iter(kept))], LinearAttention)
    with pytest.raises(KeyError):
        again["elsewhere"]


def test_bad_input_and_unknown_attention_name_the_layer():
    model = model_of("Llama")
    ids = torch.randint(1, VOCABULARY, (1, 9))
    with pytest.raises(InputError, match=r"input_ids\.shape=\[9\]: expected \[B, T\]"):
        capture(model, ids[0])
    with pytest.raises(InputError, match=r"attention_mask\.shape=\[1, 8\]: expected \[1, 9\]"):
        capture(model, ids, attention_mask=torch.ones(1, 8))
    with pytest.raises(InputError, match=r"model\.layers\.0\.self_attn: top=99"):
        capture(model, ids, top=99)
    with pytest.raises(InputError, match=r"model\.layers\.0\.self_attn: targets\.shape"):
        capture(model, ids, targets=torch.zeros(1, 8, 1, dtype=torch.int32))
    with pytest.raises(NotImplementedError, match=r"model\.layers\.0\.self_attn: .* at most 256"):
        capture(tf.LlamaForCausalLM(tf.LlamaConfig(**GQA | {"head_dim": 260})).eval(), ids)

    class Elsewhere(nn.Module):
        def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
            return hidden_states, None

    model.model.layers[1].self_attn = Elsewhere()
    with pytest.raises(InputError, match=r"model\.layers\.1: its attention was not seen"):
        capture(model, ids)
    assert model.config._attn_implementation == "eager"


def test_masks_it_does_not_know_are_refused():
    config = tf.Gemma3TextConfig(**GQA, sliding_window=WINDOW, query_pre_attn_scalar=16)
    config.use_bidirectional_attention = True
    model = tf.Gemma3ForCausalLM(config).eval()
    ids = torch.randint(1, VOCABULARY, (1, 9))
    try:
        found = capture(model, ids)
    except NotImplementedError as error:
        assert "attention capture" in str(error)
    else:  # a bidirectional one it knows
        assert all((a.previous[..., 1:] > 0).all() for a in found.values())
