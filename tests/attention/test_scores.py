"""Head scores: their definitions, what trained models show, and what architecture alone gives."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trustbench.attention.patterns import Form, divergence
from trustbench.attention.scores import (
    HeadScores,
    earlier_occurrences,
    head_profile,
    head_scores,
    repeated_tokens,
)
from trustbench.errors import InputError
from trustbench.ops import attention_capture

VOCABULARY = 64


class Nothing(nn.Module):
    """In the place of an MLP: the model is attention alone."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def attention_only(layers: int, kv_heads: int = 2) -> tf.LlamaForCausalLM:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=kv_heads, intermediate_size=8, max_position_embeddings=128,
    )  # fmt: skip
    model = tf.LlamaForCausalLM(config)
    for layer in model.model.layers:
        layer.mlp = Nothing()
    return model


def trained_on_repetition(layers: int, steps: int = 600) -> tf.LlamaForCausalLM:
    """A model that has learned to predict the second time a random sequence is said."""
    model = attention_only(layers)
    adam = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01, betas=(0.9, 0.98))
    for step in range(steps):
        half = 8 + step * 7 % 16
        ids = repeated_tokens(VOCABULARY, 32, half, seed=step)
        for group in adam.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
        logits = model(ids).logits[:, half - 1 : -1]
        loss = cross_entropy(logits.reshape(-1, VOCABULARY), ids[:, half:].reshape(-1))
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
    return model.eval()


@pytest.fixture(scope="module")
def trained():
    """Two layers, then one."""
    return {layers: trained_on_repetition(layers) for layers in (2, 1)}


def test_induction_heads_are_found_where_they_can_be(trained):
    """Olsson et al. 2022: they need two layers, a previous-token head below them."""
    ids = repeated_tokens(VOCABULARY, 8, 20, seed=10**6)
    first, second = head_scores(trained[2], ids).values()
    assert second.induction.max() > 0.5 and first.induction.max() < 0.2
    assert first.previous.max() > 0.25
    (alone,) = head_scores(trained[1], ids).values()
    assert alone.induction.max() < 0.25


def test_they_stand_out_from_both_nulls(trained):
    ids = repeated_tokens(VOCABULARY, 4, 20, seed=10**6)
    _, second = head_profile(trained[2], ids, repeats=3).values()
    assert second.z_initial.induction.max() > 5 and second.z_shuffled.induction.max() > 5
    # A model that has learned nothing is like its own null.
    fresh = head_profile(attention_only(2).eval(), ids, repeats=3)
    for profile in fresh.values():
        for score in HeadScores._fields[:6]:
            assert getattr(profile.z_initial, score).abs().max() < 8, score
    with pytest.raises(InputError, match="repeats=1: expected an integer >= 2"):
        head_profile(trained[2], ids, repeats=1)


def repeated_heads(model: tf.LlamaForCausalLM) -> tf.LlamaForCausalLM:
    """The same function with a kv head for every query head."""
    same = attention_only(len(model.model.layers), kv_heads=4)
    weights = dict(model.state_dict())
    for name in weights:
        if "k_proj" in name or "v_proj" in name:
            heads = weights[name].view(2, 16, -1)
            weights[name] = heads.repeat_interleave(2, 0).flatten(0, 1)
    same.load_state_dict(weights)
    return same.eval()


def test_the_same_model_with_other_kv_heads_has_the_same_profile(trained):
    """Architecture is not taken for signal."""
    ids = repeated_tokens(VOCABULARY, 4, 20)
    mine, theirs = head_scores(trained[2], ids), head_scores(repeated_heads(trained[2]), ids)
    for name, scores in mine.items():
        for what in HeadScores._fields[:7]:  # by query head; the rest is by group
            torch.testing.assert_close(
                getattr(scores, what), getattr(theirs[name], what), rtol=1e-4, atol=1e-6
            )
        assert theirs[name].within.isnan().all()  # groups of one head


def test_scores_are_what_they_say():
    model = attention_only(2)
    ids = torch.randint(0, 8, (2, 25))  # tokens come again and again
    with torch.no_grad():
        model.set_attn_implementation("eager")
        full = model(ids, output_attentions=True).attentions
    B, T = ids.shape
    for scores, p in zip(head_scores(model.eval(), ids).values(), full, strict=True):
        p, sums = p.double(), {name: [] for name in ("induction", "duplicate", "previous", "sink")}
        entropy = []
        for b in range(B):
            for t in range(T):
                row = p[b, :, t]
                before = [j for j in range(t) if ids[b, j] == ids[b, t]][-4:]
                if before:
                    sums["duplicate"].append(row[:, before].sum(1))
                after = [j + 1 for j in before if j + 1 < t]
                if after:
                    sums["induction"].append(row[:, after].sum(1))
                if t:
                    sums["previous"].append(row[:, t - 1])
                    sums["sink"].append(row[:, 0])
                    entropy.append(torch.special.entr(row).sum(1) / math.log(t + 1))
        for name, rows in (*sums.items(), ("entropy", entropy)):
            wanted = torch.stack(rows).mean(0)
            torch.testing.assert_close(getattr(scores, name).cpu(), wanted, rtol=1e-5, atol=1e-7)


def test_padding_does_not_count():
    model, ids = attention_only(2).eval(), repeated_tokens(VOCABULARY, 2, 12)
    real = torch.ones_like(ids)
    real[1, 18:] = 0
    other = ids.clone()
    other[1, 18:] = 5
    for one, two in zip(
        head_scores(model, ids, attention_mask=real).values(),
        head_scores(model, other, attention_mask=real).values(),
        strict=True,
    ):
        for what in ("previous", "sink", "local", "entropy", "within"):
            torch.testing.assert_close(getattr(one, what), getattr(two, what))


def test_earlier_occurrences():
    ids = torch.randint(0, 5, (3, 30))
    found = earlier_occurrences(ids, most=3)
    for b in range(3):
        for t in range(30):
            before = [j for j in range(t) if ids[b, j] == ids[b, t]][::-1][:3]
            assert found[b, t].tolist() == before + [-1] * (3 - len(before))
    assert earlier_occurrences(ids[:, :1]).tolist() == [[[-1] * 4]] * 3


def test_divergence_is_jensen_shannons():
    q, k = torch.randn(2, 6, 40, 8), torch.randn(2, 2, 40, 8)
    segments = torch.zeros(2, 40, dtype=torch.int32)
    segments[1, 30:] = -1
    form = Form(True, 9, segments, 0.5, None)
    lse = attention_capture(q, k, k, window=9, segments=segments, scale=0.5).lse
    within, between = divergence(q, k, lse, form)
    s = torch.einsum("bhtd,bhsd->bhts", q, k.repeat_interleave(3, 1)).double() * 0.5
    away = torch.arange(40)[:, None] - torch.arange(40)
    p = s.masked_fill((away < 0) | (away >= 9), -torch.inf).softmax(-1)

    def jsd(patterns: Tensor) -> Tensor:
        mixed = patterns.mean(0)
        kl = [torch.where(x > 0, x * (x / mixed).log(), 0).sum(-1) for x in patterns]
        return torch.stack(kl).mean(0)

    groups = p.view(2, 2, 3, 40, 40)
    real = segments >= 0
    for g in range(2):
        torch.testing.assert_close(
            within[:, g][real].double(), jsd(groups[:, g].transpose(0, 1))[real], rtol=1e-4, atol=1e-6
        )
    torch.testing.assert_close(
        between[real].double(), jsd(groups.mean(2).transpose(0, 1))[real], rtol=1e-4, atol=1e-6
    )
    assert (within.transpose(1, 2)[~real] == 0).all() and (between[~real] == 0).all()
    same = torch.randn(1, 1, 10, 8).expand(1, 4, 10, 8)
    keys = k[:1, :1, :10].contiguous()
    lse = attention_capture(same, keys, keys, scale=1.0, softcap=2.0).lse
    within, between = divergence(same, keys, lse, Form(True, None, None, 1.0, 2.0))
    assert within.max() < 1e-6 and between.max() < 1e-6
