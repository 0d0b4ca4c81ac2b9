"""inline_attention: the models' own attention as one call, to the bit, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

from trustbench.models.inline_attention import Call, called, inline_modules

SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2}
FALCON = SMALL | {"num_attention_heads": 4}
MODELS: dict[str, Callable[[], Any]] = {
    "GPT-Neo": lambda: tf.GPTNeoConfig(
        vocab_size=60, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48,
        attention_types=[[["global", "local"], 1]], window_size=7, max_position_embeddings=64,
    ),
    "Falcon": lambda: tf.FalconConfig(**FALCON),
    "Falcon, grouped": lambda: tf.FalconConfig(
        **FALCON, num_kv_heads=2, new_decoder_architecture=True
    ),
    "Falcon, ALiBi": lambda: tf.FalconConfig(**FALCON, multi_query=False, alibi=True),
    "BLOOM": lambda: tf.BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4),
    "MPT": lambda: tf.MptConfig(vocab_size=60, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
}  # fmt: skip
models = pytest.mark.parametrize(
    ("family", "kind"),
    [*((name, "eager") for name in MODELS), ("Falcon", "sdpa"), ("Falcon, ALiBi", "sdpa")],
)
T = 19


def model_of(family: str, kind: str = "eager") -> Any:
    config = MODELS[family]()
    return tf.AutoModelForCausalLM.from_config(config, attn_implementation=kind).eval()


def logits(model: Any, ids: Tensor, attend: Callable[[Call], Tensor] | None = None) -> Tensor:
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    if attend is None:
        return model(ids, attention_mask=mask).logits
    with called(model, attend):
        return model(ids, attention_mask=mask).logits


@models
def test_a_call_gives_what_the_model_computes_to_the_bit(family, kind):
    model, ids, calls = model_of(family, kind), torch.randint(1, 60, (2, T)), []

    def attend(call: Call) -> Tensor:
        calls.append(call)
        return call.run(call.q, call.k, call.v)

    wanted = logits(model, ids)
    assert torch.equal(logits(model, ids, attend), wanted)
    assert [call.module for call in calls] == list(inline_modules(model).values())
    for call in calls:
        assert call.q.shape == (2, 4, T, 8)
        assert call.k.shape == call.v.shape and call.k.shape[1:] in ((4, T, 8), (1, T, 8))
    assert torch.equal(logits(model, ids), wanted) and len(calls) == 2  # nothing stays behind


@models
def test_gradients_are_the_models_own_and_reach_what_is_changed(family, kind):
    model, ids = model_of(family, kind), torch.randint(1, 60, (2, T))
    scales = torch.ones(3, requires_grad=True)

    def attend(call: Call) -> Tensor:
        q, k, v = (t * s for t, s in zip((call.q, call.k, call.v), scales, strict=True))
        return call.run(q, k, v)

    gradients = []
    for given in (None, attend):
        model.zero_grad()
        logits(model, ids, given).logsumexp(2).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-4, atol=1e-5, msg=name)
    assert scales.grad is not None and (scales.grad != 0).all()


def test_a_failure_inside_leaves_the_model_as_it_was():
    model, ids = model_of("BLOOM"), torch.randint(1, 60, (2, T))
    wanted = logits(model, ids)

    def fail(call: Call) -> Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        logits(model, ids, fail)
    assert torch.equal(logits(model, ids), wanted)
    with pytest.raises(RuntimeError, match="earlier"):  # before the attention is entered

        def before(*_: Any) -> None:
            raise RuntimeError("earlier")

        handle = next(iter(inline_modules(model).values())).register_forward_pre_hook(before)
        try:
            logits(model, ids, fail)
        finally:
            handle.remove()
    assert torch.equal(logits(model, ids), wanted)


def test_families_of_the_attention_interface_have_none():
    config = tf.GPTNeoXConfig(**FALCON, intermediate_size=48)
    assert inline_modules(tf.GPTNeoXForCausalLM(config)) == {}
