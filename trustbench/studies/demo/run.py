"""`trustbench demo`: train, evaluate, look, report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from trustbench import files
from trustbench.data import Documents, TokenStream
from trustbench.evals import EvalReport, evaluate_saes
from trustbench.fields import Config, NonEmptyStr, PositiveInt
from trustbench.models import load_model
from trustbench.sae import SAEConfig
from trustbench.studies.demo import assets
from trustbench.studies.demo.passages import best_features
from trustbench.studies.demo.report import write_report
from trustbench.training import TrainConfig, train

TOKENS = 1_000_000
_PASSAGE_BATCHES = 24  # of 16 rows: a quarter of the text


def demo_config(out: Path, tokens: int = TOKENS) -> TrainConfig:
    """The demo's run: SAEs on all six layers of the built-in model."""
    return TrainConfig(
        model=str(assets.MODEL),
        data=str(assets.TRAIN_TEXT),
        out=str(out),
        tokens=tokens,
        sae=SAEConfig(d_sae=4096, k=32, normalize="expected_norm"),
        heldout_fraction=0.0,  # the held-out text is a file of its own
        model_dtype="bf16",
        lr=1e-3,
        dead_after_tokens=200_000,
        checkpoint_minutes=1.0,
    )


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """Where the demo writes, and how long it trains.

    Parameters
    ----------
    out
        Directory of the run and its report.
    tokens
        Tokens to train on.
    """

    out: NonEmptyStr = "demo-run"
    tokens: PositiveInt = TOKENS


def demo(config: DemoConfig, *, progress: bool = True) -> Path:
    """Train SAEs on all six layers of the built-in model, on the built-in text, offline.

    Evaluates them and writes report.html. A few minutes on 2 cores; a stopped demo continues when it
    is called again.

    Parameters
    ----------
    config : DemoConfig
    progress : bool
        Say what is being done, show a progress bar, print the evaluation.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    KeyboardInterrupt
        When training was stopped.
    """
    out = Path(config.out)
    training = demo_config(out, config.tokens)
    started = time.monotonic()
    result = train(training, progress=progress)
    if not result.finished:
        raise KeyboardInterrupt
    if progress:
        print("evaluating on held-out text ...", flush=True)
    model, tokenizer = load_model(str(assets.MODEL))

    def text(path: Path) -> TokenStream:
        return TokenStream(Documents(str(path)), tokenizer, 256, 16, repeat=False)

    report = evaluate_saes(result.saes, model, text(assets.HELDOUT_TEXT), spliced_tokens=8192)
    files.atomic_write_json(out / "eval.json", report.to_dict())
    if progress:
        print("collecting passages ...", flush=True)
    sample = islice(text(assets.TRAIN_TEXT), _PASSAGE_BATCHES)
    features = best_features(result.saes, model, tokenizer, sample)

    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    path = out / "report.html"
    write_report(
        path,
        title="SAEs on every layer of a small Shakespeare model",
        about=_about(),
        facts=_facts(training, metrics, report),
        metrics=metrics,
        report=report,
        features=features,
    )
    if progress:
        print(report.table())
        print(
            f"trained in {training_seconds(metrics):.0f} s, all in {time.monotonic() - started:.0f}"
            f" s, on {torch.get_num_threads()} threads; report: {path}"
        )
    return path


def training_seconds(metrics: Sequence[Mapping[str, Any]]) -> float:
    """How long a run trained, over all its sessions, from the lines of metrics.jsonl."""
    seconds, before = 0.0, 0
    for line in metrics:
        if line["tokens"] > before:  # the first layer's line of every step
            seconds += (line["tokens"] - before) / max(line["tokens_per_second"], 1)
            before = line["tokens"]
    return seconds


def _about() -> str:
    record = files.read_json(assets.TRAINING)
    millions, perplexity = record["parameters"] / 1e6, record["heldout_perplexity"]
    return (
        f"The model: a GPT-NeoX with 6 layers and {millions:.1f} million parameters, trained on"
        f" Shakespeare's plays (held-out perplexity {perplexity:.1f},"
        f" {record['heldout_bytes_per_token']:.1f} bytes a token)."
    )


def _facts(
    config: TrainConfig, metrics: Sequence[Mapping[str, Any]], report: EvalReport
) -> dict[str, str]:
    """The headline."""
    layers = list(report.layers.values())
    seconds = training_seconds(metrics)
    tokens = metrics[-1]["tokens"]
    dead = [line["dead_fraction"] for line in metrics if line["tokens"] == tokens]
    return {
        "SAEs, one a layer": str(len(layers)),
        "features each": f"{config.sae.d_sae:,}",
        "training tokens": f"{tokens:,}",
        "seconds of training": f"{seconds:.0f}",
        "tokens a second, all layers": f"{tokens / seconds:,.0f}",
        "mean FVU": f"{fmean(layer.fvu for layer in layers):.3f}",
        "mean loss recovered": f"{fmean(layer.loss_recovered for layer in layers):.1%}",
        "dead features": f"{fmean(dead):.2%}",
    }
