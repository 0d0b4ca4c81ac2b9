"""Trains the language model of `trustbench demo`: a small GPT-NeoX on Shakespeare's plays.

    python scripts/train_demo_model.py --text tinyshakespeare.txt --out trustbench/studies/demo/assets

Writes into --out: the model (bf16 safetensors and config), its byte-level BPE tokenizer, the text
split into train.txt and heldout.txt (the last 5 %, cut between two speeches), and training.json:
the recipe, the loss curve and the held-out perplexity. Deterministic for a given machine and number
of threads; about 20 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

SEPARATOR = "\n\n"  # stands between two speeches
END = "<|endoftext|>"


def split_text(text: str, heldout_share: float = 0.05) -> tuple[str, str]:
    """Cut off the last share of the text, between two speeches."""
    cut = text.index(SEPARATOR, int(len(text) * (1 - heldout_share))) + len(SEPARATOR)
    return text[:cut], text[cut:]


def train_tokenizer(text: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text can be encoded and comes back unchanged."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text.split(SEPARATOR), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then cosine decay to a tenth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def heldout_loss(model: GPTNeoXForCausalLM, ids: Tensor, context: int) -> float:
    """Mean next-token loss (nats) over consecutive windows, each predicted from its own start."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, context):
        window = ids[start : start + context + 1]
        logits = model(window[None, :-1]).logits[0].float()
        total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
        count += len(window) - 1
    model.train()
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="the plays, as one text file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the demo's assets")
    parser.add_argument("--steps", type=int, default=1100, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=16, help="windows a step")
    parser.add_argument("--context", type=int, default=256, help="tokens a window")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    train_text, heldout_text = split_text(args.text.read_text(encoding="utf-8"))
    (args.out / "train.txt").write_text(train_text, encoding="utf-8")
    (args.out / "heldout.txt").write_text(heldout_text, encoding="utf-8")
    tokenizer = train_tokenizer(train_text, args.vocab_size)
    train_ids = torch.tensor(tokenizer(train_text).input_ids)
    heldout_ids = torch.tensor(tokenizer(heldout_text).input_ids)

    config = GPTNeoXConfig(
        vocab_size=args.vocab_size,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=1024,
        max_position_embeddings=args.context,
        hidden_dropout=0.1,
        attention_dropout=0.1,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPTNeoXForCausalLM(config)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.95),
    )

    curve: list[dict[str, float]] = []
    best = (math.inf, 0)
    started = time.time()
    running = 0.0
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr, warmup=50)
        starts = torch.randint(len(train_ids) - args.context - 1, (args.batch,))
        windows = torch.stack([train_ids[s : s + args.context + 1] for s in starts])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(windows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), windows[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running += loss.item()
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            heldout = heldout_loss(model, heldout_ids, args.context)
            since = step + 1 - (curve[-1]["step"] if curve else 0)
            curve.append({"step": step + 1, "train": running / since, "heldout": heldout})
            running = 0.0
            seconds = time.time() - started
            print(f"{curve[-1]} {seconds:.0f} s", flush=True)
            if heldout < best[0]:  # the text is small: keep the model from before it overfits
                best = (heldout, step + 1)
                torch.save(model.state_dict(), args.out / "best.pt")
    model.load_state_dict(torch.load(args.out / "best.pt"))
    (args.out / "best.pt").unlink()

    model = model.to(torch.bfloat16)
    model.config.hidden_dropout = model.config.attention_dropout = 0.0
    model.save_pretrained(args.out / "model")
    tokenizer.save_pretrained(args.out / "model")
    shipped = heldout_loss(model, heldout_ids, args.context)
    record = {
        "text": "Shakespeare's plays as collected in karpathy/char-rnn (public domain)",
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens": len(train_ids),
        "heldout_tokens": len(heldout_ids),
        "heldout_bytes_per_token": len(heldout_text.encode()) / len(heldout_ids),
        "recipe": {
            "optimizer": "AdamW, betas (0.9, 0.95), weight decay 0.1 on matrices, clip 1.0",
            "schedule": "50 steps of warm-up, cosine to a tenth; best held-out checkpoint kept",
            "dropout": 0.1,
            **{k: getattr(args, k) for k in ("steps", "batch", "context", "lr", "seed")},
        },
        "best_step": best[1],
        "seconds": round(time.time() - started),
        "loss_curve": curve,
        "heldout_loss": shipped,
        "heldout_perplexity": math.exp(shipped),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"held-out loss {shipped:.4f} nats a token, perplexity {math.exp(shipped):.2f}")


if __name__ == "__main__":
    main()
