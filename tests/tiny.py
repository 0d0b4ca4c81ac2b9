"""A small random model on disk, its tokenizer, and made-up text: the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_WORDS = "the king queen realm crown sword night speaks to of and in a my thy love death"


def tokenizer() -> Any:
    """Byte-level BPE with fewer than 300 tokens."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the king and the queen of the realm"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", bos_token="<end>")


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


def write_text(path: Path) -> Path:
    """60 kB of words, ten a line."""
    words = _WORDS.split()
    generator = torch.Generator().manual_seed(1)
    order = torch.randint(len(words), (13000,), generator=generator).tolist()
    lines = [" ".join(words[i] for i in order[s : s + 10]) for s in range(0, len(order), 10)]
    path.write_text("\n".join(lines) + "\n")
    return path
