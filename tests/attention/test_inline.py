"""Attention computed in line: what is refused, what is kept exact, and the scores of its heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from trustbench.attention import capture
from trustbench.attention.inline import interpreted
from trustbench.attention.scores import head_profile, repeated_tokens
from trustbench.cli import main
from trustbench.models.inline_attention import Call, called
from trustbench.report import Table

FALCON = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def gpt_neo(vocabulary: int = 60) -> tf.GPTNeoForCausalLM:
    config = tf.GPTNeoConfig(
        vocab_size=vocabulary, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48,
        attention_types=[[["global", "local"], 1]], window_size=7, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return tf.GPTNeoForCausalLM(config).eval()


def bloom(heads: int = 4) -> tf.BloomForCausalLM:
    config = tf.BloomConfig(vocab_size=60, hidden_size=8 * heads, n_layer=2, n_head=heads)
    return tf.BloomForCausalLM(config).eval()


def last_hidden(model: Any, ids: Tensor, **mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of the model as it is, and while it is captured."""
    outputs: list[Tensor] = []
    handle = model.base_model.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    with torch.no_grad():
        model(ids, **mask)
    capture(model, ids, **mask)
    handle.remove()
    return outputs[0], outputs[1]


def test_falcons_bias_is_rounded_as_falcon_rounds_it():
    """In bf16 whatever the model: from position 257 on it is no straight line."""
    config = tf.FalconConfig(**FALCON, multi_query=False, alibi=True)
    model = tf.FalconForCausalLM(config).eval()
    plain, captured = last_hidden(model, torch.randint(1, 60, (1, 400)))
    torch.testing.assert_close(captured, plain, rtol=2e-5, atol=2e-5)


def test_fp32_scores_of_a_bf16_model_are_computed_of_its_bf16_numbers():
    model, ids = gpt_neo().to(torch.bfloat16), torch.randint(1, 60, (2, 40))
    kinds: list[torch.dtype] = []

    def attend(call: Call) -> Tensor:
        given = interpreted(call)
        kinds.extend(t.dtype for t in (given.q, given.k, given.v))
        assert call.q.dtype == torch.float32
        return call.run(call.q, call.k, call.v)

    with torch.no_grad(), called(model, attend):
        model(ids[:, :1])  # of one token: the mask is None
    assert kinds == [torch.bfloat16] * 6
    plain, captured = last_hidden(model, ids)
    torch.testing.assert_close(captured, plain, rtol=0.05, atol=0.05)


def test_groups_that_falcon_repeats_are_groups_again():
    config = tf.FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True)
    found = capture(
        tf.FalconForCausalLM(config).eval(), torch.randint(1, 60, (1, 9)), divergence=True
    )
    assert {layer.within.shape for layer in found.values()} == {(1, 2, 9)}


def test_alibi_stays_where_it_is_when_keys_are_shuffled():
    model, ids = bloom(heads=6), torch.randint(1, 60, (2, 30))
    options = {"divergence": True, "by_distance": True, "rows": torch.arange(30)}
    real, null = (capture(model, ids, shuffled=seed, **options) for seed in (None, 3))
    for name in real:
        assert not torch.allclose(real[name].entropy, null[name].entropy)
    for block in model.transformer.h:  # all that is left is the bias
        nn.init.zeros_(block.self_attention.query_key_value.weight)
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])
    away = torch.arange(30)[:, None] - torch.arange(30)
    s = (-slopes[:, None, None] * away).masked_fill(away < 0, -torch.inf)
    p = s.softmax(2)
    mean = p.mean(0)
    between = torch.special.entr(mean).sum(1) - torch.special.entr(p).sum(2).mean(0)
    for seed in (None, 3):
        for layer in capture(model, ids, shuffled=seed, **options).values():
            torch.testing.assert_close(layer.pattern, p.expand(2, -1, -1, -1), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(layer.lse, s.logsumexp(2).expand(2, -1, -1))
            torch.testing.assert_close(layer.between, between.expand(2, -1), rtol=1e-4, atol=1e-6)
            means = torch.stack([p.diagonal(-i, 1, 2).mean(1) for i in range(30)], 1)
            torch.testing.assert_close(layer.by_distance, means, rtol=1e-4, atol=1e-6)


class Own(nn.Module):
    """An attention of a model's own, with one step that may be anything."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def change(self, scores: Tensor) -> Tensor:
        return scores

    def forward(self, x: Tensor, *_: Any, attention_mask: Any, **__: Any) -> tuple[Tensor, None]:
        heads = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        scores = self.change(torch.matmul(heads, heads.mT)).masked_fill(attention_mask, -1e38)
        return (scores.softmax(-1) @ heads).transpose(1, 2).flatten(2), None


class SignedAttention(Own):
    def change(self, scores: Tensor) -> Tensor:
        return scores.abs()


class PairwiseAttention(Own):
    def change(self, scores: Tensor) -> Tensor:
        return scores + torch.zeros(scores.shape[-2:])


class DilatedAttention(Own):
    def change(self, scores: Tensor) -> Tensor:
        at = torch.arange(scores.shape[-1])
        return torch.where(((at[:, None] - at) % 2 == 0)[None, None], scores, -1e38)


class ProbableAttention(Own):
    def change(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1) * 2


class PlainAttention(Own):
    pass


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (SignedAttention, "a step of `abs`"),
        (PairwiseAttention, "a bias of every query and key"),
        (DilatedAttention, "not causal or windowed"),
        (ProbableAttention, "a step of `mul`"),
    ],
)
def test_what_is_not_understood_is_refused_by_the_layers_name(kind, words):
    config = tf.MptConfig(vocab_size=60, d_model=32, n_layers=2, n_heads=4, max_seq_len=64)
    model, ids = tf.MptForCausalLM(config).eval(), torch.randint(1, 60, (1, 9))
    model.transformer.blocks[1].attn = PlainAttention(4)
    plain, captured = last_hidden(model, ids)
    torch.testing.assert_close(captured, plain)
    model.transformer.blocks[1].attn = kind(4)
    with pytest.raises(NotImplementedError, match=rf"transformer\.blocks\.1\.attn: .*{words}"):
        capture(model, ids)
    assert model.config._attn_implementation == "eager"


def test_dropout_is_refused():
    model = gpt_neo()
    model.config.attention_dropout = 0.5
    model.transformer.h[0].attn.attention.attn_dropout.p = 0.5
    model.train()
    with pytest.raises(NotImplementedError, match=r"h\.0\.attn\.attention: .* `dropout`"):
        capture(model, torch.randint(1, 60, (1, 9)))


def test_head_profiles_of_gpt_neo():
    model, ids = gpt_neo(), repeated_tokens(60, 2, 12)
    profile = head_profile(model, ids, repeats=2)
    assert list(profile) == [f"transformer.h.{i}.attn.attention" for i in range(2)]
    for layer in profile.values():
        assert all(torch.isfinite(score).all() for score in layer.raw[:7])
        assert layer.z_initial.previous.abs().max() < 10  # it is random itself


def test_the_command_profiles_a_folder_of_gpt_neo(tmp_path, tiny_tokenizer, tiny_text):
    folder = tmp_path / "neo"
    gpt_neo(len(tiny_tokenizer)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    assert main([
        "heads", "--model", str(folder), "--data", str(tiny_text),
        "--out", str(tmp_path / "heads"), "--tokens", "300", "--context_length", "32",
        "--model_rows", "8", "--document_separator", "\n",
    ]) == 0  # fmt: skip
    found = Table.read(tmp_path / "heads" / "heads.jsonl").where(part="text")
    layers = dict.fromkeys(row["layer"] for row in found)
    assert list(layers) == [f"transformer.h.{i}.attn.attention" for i in range(2)]
