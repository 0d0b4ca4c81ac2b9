"""heads(): scores of every head of a model, on repeated random tokens, with nulls, and on text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trustbench import devices, files
from trustbench.activations.config import TextConfig
from trustbench.attention.layers import capture
from trustbench.attention.linear import LinearAttention
from trustbench.attention.page import write_page
from trustbench.attention.scores import HeadScores, head_profile, head_scores, repeated_tokens
from trustbench.errors import DataError, bad
from trustbench.fields import NonEmptyStr, PositiveInt
from trustbench.models import load_model

_ROWS, _HALF = 8, 64  # of the repeated tokens


@dataclass(frozen=True, kw_only=True)
class HeadsConfig(TextConfig):
    """Whose heads are scored, and on which text.

    Parameters
    ----------
    model, data, context_length, ..., prepend_bos
        What is read, and by which model: see TextConfig.
    out
        Directory of heads.json and heads.html.
    tokens
        Tokens of the text to score, at least; fewer when the text ends before.
    repeats
        Draws of each null (see head_profile).
    """

    out: NonEmptyStr
    tokens: PositiveInt
    repeats: PositiveInt = 3


def heads(config: HeadsConfig, *, progress: bool = True) -> dict[str, Any]:
    """Score what every attention head of every layer looks at, on random tokens and on a text.

    Writes out/heads.json and out/heads.html.

    Parameters
    ----------
    config : HeadsConfig
    progress : bool
        Print where the page is.

    Returns
    -------
    What heads.json holds: {"model", "tokens", "repeated": {"raw", "z_initial", "z_shuffled"}, "text",
    "linear"}; scores as {layer: {score: [a number a head]}}, null where one is not defined.

    Raises
    ------
    InputError, DataError
        For a path that is no directory, or text without a token.
    """
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise bad("out", str(out), "a directory")
    device = devices.resolve(config.device)
    dtype = devices.dtype(config.model_dtype, device)
    model, tokenizer = load_model(config.model, dtype=dtype, device=device)
    ids = _repeated(model, tokenizer, config.context_length)
    profiles = head_profile(model, ids, repeats=config.repeats)
    text, tokens = _on_text(model, tokenizer, config)
    found = {
        "model": config.model,
        "tokens": tokens,
        "repeated": {
            part: {name: _plain(getattr(profile, part)) for name, profile in profiles.items()}
            for part in ("raw", "z_initial", "z_shuffled")
        },
        "text": {name: _plain(scores) for name, scores in text.items()},
        "linear": {
            name: {
                "decay": layer.decay.double().mean((0, 1)).tolist(),
                "write": layer.write.double().mean((0, 1)).tolist(),
                "look_back": layer.look_back.double().mean(0).tolist(),
                "state_norm": layer.state_norm.double().mean(0).tolist(),
            }
            for name, layer in capture(model, ids).items()
            if isinstance(layer, LinearAttention)
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    files.atomic_write_json(out / "heads.json", found)
    write_page(out / "heads.html", found)
    if progress:
        print(f"{len(text)} layers, {tokens} tokens: {out}/heads.html")
    return found


def _repeated(model: Any, tokenizer: Any, context_length: int) -> Tensor:
    """Random tokens said twice, none of them special."""
    size = model.config.get_text_config().vocab_size
    special = set(tokenizer.all_special_ids)
    allowed = torch.tensor([i for i in range(size) if i not in special])
    half = max(2, min(_HALF, context_length // 2))
    return allowed[repeated_tokens(len(allowed), _ROWS, half)].to(model.device)


def _on_text(model: Any, tokenizer: Any, config: HeadsConfig) -> tuple[dict[str, HeadScores], int]:
    """Means over forwards, weighted by their tokens."""
    sums: dict[str, list[Tensor]] = {}
    tokens = 0
    for batch in config.stream(tokenizer, "train"):
        real = batch.mask.clone()
        if config.prepend_bos:
            real[:, 0] = True  # its activations are left out, but it is there to be looked at
        count = int(real.sum())
        scored = head_scores(
            model, batch.input_ids.to(model.device), attention_mask=real.long().to(model.device)
        )
        for name, scores in scored.items():
            weighted = [count * score.cpu() for score in scores]
            known = sums.setdefault(name, [torch.zeros_like(w) for w in weighted])
            sums[name] = [a + b for a, b in zip(known, weighted, strict=True)]
        tokens += count
        if tokens >= config.tokens:
            break
    if not tokens:
        raise DataError(f"data={config.data!r}: no tokens to profile heads on")
    return {name: HeadScores(*(s / tokens for s in total)) for name, total in sums.items()}, tokens


def _plain(scores: HeadScores) -> dict[str, list[float | None]]:
    """Ready for JSON, which has no NaN."""
    return {
        name: [value if math.isfinite(value) else None for value in score.tolist()]
        for name, score in scores._asdict().items()
    }
