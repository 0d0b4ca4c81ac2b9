"""`trustbench demo`: train, evaluate, look, report."""

from __future__ import annotations

import json
import time
from itertools import islice
from pathlib import Path

import torch

from trustbench import files
from trustbench.capture import load_model
from trustbench.data import Documents, TokenStream
from trustbench.demo import assets
from trustbench.demo.passages import best_features
from trustbench.demo.report import write_report
from trustbench.evals import evaluate
from trustbench.sae import SAEConfig
from trustbench.train import TrainConfig, train

TOKENS = 1_000_000


def demo_config(out: Path, tokens: int = 0) -> TrainConfig:
    """The demo's run: SAEs on all six layers of the built-in model."""
    return TrainConfig(
        model=str(assets.MODEL),
        data=str(assets.TRAIN_TEXT),
        out=str(out),
        tokens=tokens or TOKENS,
        sae=SAEConfig(d_sae=4096, k=32, normalize="expected_norm"),
        heldout_fraction=0.0,  # the held-out text is a file of its own
        model_dtype="bf16",
        lr=1e-3,
        dead_after_tokens=200_000,
        checkpoint_minutes=1.0,
    )


def run_demo(out: Path, *, tokens: int = 0) -> Path:
    """Run the demo in `out`; returns the path of the report.

    A stopped demo continues when it is called again.
    """
    config = demo_config(out, tokens)
    started = time.monotonic()
    result = train(config)
    if not result.finished:
        raise KeyboardInterrupt
    seconds = time.monotonic() - started
    print("evaluating on held-out text ...", flush=True)
    model, tokenizer = load_model(str(assets.MODEL))

    def text(path: Path) -> TokenStream:
        return TokenStream(Documents(str(path)), tokenizer, 256, 16, repeat=False)

    report = evaluate(result.saes, model, text(assets.HELDOUT_TEXT), spliced_tokens=8192)
    files.atomic_write_json(out / "eval.json", report.to_dict())
    print("collecting passages ...", flush=True)
    sample = islice(text(assets.TRAIN_TEXT), 40)
    features = best_features(result.saes, model, tokenizer, sample)

    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    layers = report.layers.values()
    mean_fvu = sum(layer.fvu for layer in layers) / len(layers)
    facts = {
        "SAEs, one a layer": str(len(result.saes)),
        "features each": f"{config.sae.d_sae:,}",
        "training tokens": f"{result.tokens:,}",
        "seconds of training": f"{seconds:.0f}",
        "tokens a second, all layers": f"{result.tokens / seconds:,.0f}",
        "mean FVU": f"{mean_fvu:.3f}",
    }
    path = out / "report.html"
    write_report(
        path,
        title="SAEs on every layer of a small Shakespeare model",
        facts=facts,
        metrics=metrics,
        report=report,
        features=features,
    )
    print(report.table())
    print(f"trained in {seconds:.0f} s on {torch.get_num_threads()} threads; report: {path}")
    return path
