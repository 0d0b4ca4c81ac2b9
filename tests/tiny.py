"""Small random models, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def write_model(path: Path, tokenizer: Any, width: int) -> Path:
    """A GPT-NeoX with three layers, and its tokenizer."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=300, hidden_size=width, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
