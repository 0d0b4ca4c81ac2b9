"""A model's forward that also tells what every head looks at: entropy and largest probability.

A GPT-NeoX with random weights, the same sizes for all; every contender keeps, for all layers, what
it needs and no more. TransformerLens has its own model of that architecture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.base import Contender, version_of

SMALL = {"T": 32, "layers": 1, "d": 64, "heads": 1}
_VOCABULARY = 2048


class Forward(Contender):
    """Forward alone, with torch's SDPA: nothing is captured."""

    attention = "sdpa"

    def __init__(self, T: int, layers: int, d: int, heads: int) -> None:
        torch.manual_seed(0)
        self.T, self.layers, self.d, self.heads = T, layers, d, heads
        self.ids = torch.randint(_VOCABULARY, (1, T))
        self.model = self.make_model()

    def make_model(self) -> Any:
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        self.version = version_of("transformers")
        config = GPTNeoXConfig(
            vocab_size=_VOCABULARY, hidden_size=self.d, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, intermediate_size=4 * self.d,
            max_position_embeddings=self.T,
        )  # fmt: skip
        model = GPTNeoXForCausalLM._from_config(config, attn_implementation=self.attention)
        return model.eval().requires_grad_(False)

    @torch.no_grad()
    def run(self, _: None) -> Any:
        return self.forward()

    def forward(self) -> Any:
        return self.model.base_model(self.ids, use_cache=False)


def statistics(pattern: Tensor) -> tuple[Tensor, Tensor]:
    """From whole patterns [B, H, T, T], as one would write it."""
    return torch.special.entr(pattern).sum(3), pattern.max(3).values


class Trustbench(Forward):
    """trustbench.attention.capture: these statistics and all its others, no pattern kept."""

    def make_model(self) -> Any:
        model = super().make_model()
        self.version = version_of("trustbench")
        return model

    def forward(self) -> Any:
        from trustbench import attention

        return attention.capture(self.model, self.ids)


class Eager(Forward):
    """transformers' output_attentions."""

    attention = "eager"

    def forward(self) -> Any:
        found = self.model.base_model(self.ids, use_cache=False, output_attentions=True)
        return [statistics(pattern) for pattern in found.attentions]


class TransformerLens(Forward):
    """run_with_cache, its cache kept to the patterns."""

    def make_model(self) -> Any:
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        self.version = version_of("transformer-lens")
        config = HookedTransformerConfig(
            n_layers=self.layers, d_model=self.d, n_ctx=self.T, d_head=self.d // self.heads,
            n_heads=self.heads, d_mlp=4 * self.d, act_fn="gelu", d_vocab=_VOCABULARY,
            positional_embedding_type="rotary", rotary_dim=self.d // self.heads // 4,
            parallel_attn_mlp=True, normalization_type="LNPre", device="cpu",
        )  # fmt: skip
        return HookedTransformer(config).eval().requires_grad_(False)

    def forward(self) -> Any:
        _, cache = self.model.run_with_cache(
            self.ids, return_type=None, names_filter=lambda name: name.endswith("hook_pattern")
        )
        return [statistics(pattern) for pattern in cache.values()]


class NNsight(Forward):
    """A trace that saves each layer's weights of attention."""

    attention = "eager"

    def make_model(self) -> Any:
        from nnsight import NNsight

        model = NNsight(super().make_model().base_model)
        self.version = version_of("nnsight")
        return model

    def forward(self) -> Any:
        with self.model.trace(self.ids, use_cache=False):
            saved = [layer.attention.output[1].save() for layer in self.model.layers]
        return [statistics(pattern.value) for pattern in saved]


CONTENDERS: dict[str, type[Forward]] = {
    "trustbench": Trustbench,
    "eager, output_attentions": Eager,
    "TransformerLens": TransformerLens,
    "nnsight": NNsight,
    "forward alone": Forward,
}
