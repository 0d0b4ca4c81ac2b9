"""Tiny models with random weights, of many families, and what their attention computes."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from torch import Tensor

DEPTH = 2
GROUPED = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, "head_dim": 8,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
PLAIN = {k: v for k, v in GROUPED.items() if k not in ("num_key_value_heads", "head_dim")}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": 64}
GPT2 |= {"bos_token_id": None, "eos_token_id": None}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPTNeoX": PLAIN,
    "GPT2": GPT2,
    "Llama": GROUPED,
    "Qwen2": GROUPED,
    "Qwen3": GROUPED,
    "Gemma": GROUPED,
    "Gemma2": GROUPED | {"query_pre_attn_scalar": 8},
    "Gemma3": GROUPED | {"query_pre_attn_scalar": 8},
    "Mistral": GROUPED,
    "Phi": PLAIN,
    "Phi3": GROUPED,
    "OPT": PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "GPTJ": GPT2 | {"rotary_dim": 4},
    "GPTNeo": {
        "vocab_size": 64, "hidden_size": 32, "num_layers": DEPTH, "num_heads": 4,
        "intermediate_size": 48, "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64, "window_size": 64, "bos_token_id": None, "eos_token_id": None,
    },
    "Falcon": PLAIN,
    "Falcon, grouped": PLAIN | {"num_kv_heads": 2, "new_decoder_architecture": True},
    "Falcon, ALiBi": PLAIN | {"multi_query": False, "alibi": True, "parallel_attn": False},
    "Bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": DEPTH, "n_head": 4}
    | {"bos_token_id": None, "eos_token_id": None},
    "Mpt": {"vocab_size": 64, "d_model": 32, "n_layers": DEPTH, "n_heads": 4, "max_seq_len": 64},
    "Olmo2": GROUPED,
    "Mixtral": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "DeepseekV3": GROUPED | EXPERTS | {
        "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
        "v_head_dim": 8, "first_k_dense_replace": 1,
    },
    "Qwen3Next": GROUPED | EXPERTS | {
        "num_experts": 4, "shared_expert_intermediate_size": 16, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
}  # fmt: skip
_ALIBI = {"Bloom": 1.0, "Mpt": 1.0, "Falcon, ALiBi": 8**-0.5}  # what the bias is multiplied by


@functools.cache
def model_of(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model of a family, in eval mode and frozen; no test may change it.

    Its weights are larger than usual, and its biases and norms random, so that everything matters.
    """
    name = family.split(",")[0]
    config = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")
    model = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    torch.manual_seed(0)
    built = getattr(transformers, model)(config(**FAMILIES[family])).eval().requires_grad_(False)
    if hasattr(built, "set_experts_implementation"):
        built.set_experts_implementation("eager")  # the others have no fp64
    for parameter in built.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
        else:
            parameter.mul_(3)
    return built.to(dtype)


def attended(family: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, T, H D]: softmax(scores) v by its definition, for q, k, v [B, T, heads · D]."""
    groups = k.shape[-1] // (q.shape[-1] // 4)
    q, k, v = (
        t.unflatten(-1, (heads, -1)).transpose(1, 2)
        for t, heads in ((q, 4), (k, groups), (v, groups))
    )
    k, v = (t.repeat_interleave(4 // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * (1.0 if family in ("GPTNeo", "OPT") else q.shape[-1] ** -0.5)
    if family == "Gemma2":
        scores = 50 * torch.tanh(scores / 50)
    positions = torch.arange(q.shape[2])
    if family in _ALIBI:
        slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])
        scores = scores + _ALIBI[family] * slopes[:, None, None] * positions
    scores = scores.masked_fill(positions > positions[:, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
