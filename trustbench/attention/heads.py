"""heads(): scores of every head of a model, on repeated random tokens, with nulls, and on text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trustbench import devices, files
from trustbench.activations.config import TextConfig
from trustbench.attention.layers import capture
from trustbench.attention.linear import LinearAttention
from trustbench.attention.page import heads_page
from trustbench.attention.scores import HeadScores, head_profile, head_scores, repeated_tokens
from trustbench.errors import DataError, bad
from trustbench.fields import NonEmptyStr, PositiveInt
from trustbench.models import load_model
from trustbench.report import Table, about, model_name
from trustbench.report.table import Row

_ROWS, _HALF = 8, 64  # of the repeated tokens


@dataclass(frozen=True, kw_only=True)
class HeadsConfig(TextConfig):
    """Whose heads are scored, and on which text.

    Parameters
    ----------
    model, data, context_length, ..., prepend_bos
        What is read, and by which model: see TextConfig.
    out
        Directory of heads.jsonl and heads.html.
    tokens
        Tokens of the text to score, at least; fewer when the text ends before.
    repeats
        Draws of each null (see head_profile).
    """

    out: NonEmptyStr
    tokens: PositiveInt
    repeats: PositiveInt = 3


def heads(config: HeadsConfig, *, progress: bool = True) -> Table:
    """Score what every attention head of every layer looks at, on random tokens and on a text.

    Writes out/heads.jsonl and out/heads.html.

    Parameters
    ----------
    config : HeadsConfig
    progress : bool
        Print where the page is.

    Returns
    -------
    Table
        A row for each `part`, `layer` and `head`:

        "repeated"
            The columns of HeadScores on random tokens said twice, and each again as
            `<score>_z_initial` and `<score>_z_shuffled`: see HeadProfile.
        "text"
            The columns of HeadScores on the text (`tokens` of it).
        "linear"
            decay, write, look_back (tokens) and state_norm of LinearAttention, on the random tokens.

    Raises
    ------
    InputError, DataError
        For a path that is no directory, or text without a token.
    """
    started = time.monotonic()
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise bad("out", str(out), "a directory")
    device = devices.resolve(config.device)
    dtype = devices.dtype(config.model_dtype, device)
    model, tokenizer = load_model(config.model, dtype=dtype, device=device)
    ids = _repeated(model, tokenizer, config.context_length)
    profiles = head_profile(model, ids, repeats=config.repeats)
    text, tokens = _on_text(model, tokenizer, config)
    repeated = {
        "": {layer: profile.raw for layer, profile in profiles.items()},
        "_z_initial": {layer: profile.z_initial for layer, profile in profiles.items()},
        "_z_shuffled": {layer: profile.z_shuffled for layer, profile in profiles.items()},
    }
    key = {"model": model_name(config.model), "tokens": tokens}
    rows = [
        *_score_rows("repeated", repeated),
        *_score_rows("text", {"": text}),
        *_linear_rows(capture(model, ids)),
    ]
    table = Table(key | row for row in rows)
    seconds = time.monotonic() - started
    out.mkdir(parents=True, exist_ok=True)
    table.write(out / "heads.jsonl", about(config, device=device, seconds=seconds))
    files.atomic_write_text(out / "heads.html", heads_page(table))
    if progress:
        print(f"{len(text)} layers, {tokens} tokens: {out}/heads.html")
    return table


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


def _score_rows(part: str, found: Mapping[str, Mapping[str, HeadScores]]) -> Iterator[Row]:
    """A row a head, from {suffix of the columns: {layer: scores}}.

    What belongs to a kv group, or to the whole layer, stands in the row of each of its heads.
    """
    for layer, raw in found[""].items():
        count, groups = len(raw.induction), len(raw.within)
        for head in range(count):
            row: Row = {"part": part, "layer": layer, "head": head}
            row["kv_head"] = head * groups // count
            for suffix, layers in found.items():
                for name, values in layers[layer]._asdict().items():
                    row[f"{name}{suffix}"] = values[head * len(values) // count].item()
            yield row


def _linear_rows(layers: Mapping[str, Any]) -> Iterator[Row]:
    """A row a head of linear attention: means over tokens and rows of text."""
    for name, layer in layers.items():
        if isinstance(layer, LinearAttention):
            means = {
                "decay": layer.decay.double().mean((0, 1)).tolist(),
                "write": layer.write.double().mean((0, 1)).tolist(),
                "look_back": layer.look_back.double().mean(0).tolist(),
                "state_norm": layer.state_norm.double().mean(0).tolist(),
            }
            for head in range(len(means["decay"])):
                row: Row = {"part": "linear", "layer": name, "head": head}
                yield row | {column: values[head] for column, values in means.items()}
