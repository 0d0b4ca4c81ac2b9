"""The demo's run: train, evaluate, look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from trustbench import files
from trustbench.data import Documents, TokenStream
from trustbench.evals import evaluate_saes
from trustbench.fields import Config, NonEmptyStr, PositiveInt
from trustbench.models import load_model
from trustbench.report import Table
from trustbench.sae import SAEConfig
from trustbench.studies.demo import assets
from trustbench.studies.demo.passages import Feature, best_features
from trustbench.training import TrainConfig, train

TOKENS = 1_000_000
_PASSAGE_BATCHES = 24  # of 16 rows: a quarter of the text


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """Where the demo writes, and how long it trains.

    Parameters
    ----------
    out
        Directory of the run and its page.
    tokens
        Tokens to train on.
    """

    out: NonEmptyStr = "demo-run"
    tokens: PositiveInt = TOKENS


def demo_config(out: Path, tokens: int = TOKENS) -> TrainConfig:
    """The demo's training: SAEs on all six layers of the built-in model."""
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


def run(config: DemoConfig, *, progress: bool = True) -> dict[str, Table]:
    """Train, evaluate and look; a stopped demo continues when it is run again.

    Returns
    -------
    metrics, eval
        As those of train and evaluate_saes.
    features
        A row a feature that reads well: how often and how strongly it is active, what it promotes.
    passages
        A row a passage of a feature: its tokens, an activation each, and which is the peak.
    summary
        One row: the model and the SAEs.
    """
    out = Path(config.out)
    training = demo_config(out, config.tokens)
    result = train(training, progress=progress)
    if not result.finished:
        raise KeyboardInterrupt
    model, tokenizer = load_model(str(assets.MODEL))

    def text(path: Path) -> TokenStream:
        return TokenStream(Documents(str(path)), tokenizer, 256, 16, repeat=False)

    if progress:
        print("evaluating on held-out text ...", flush=True)
    evaluation = evaluate_saes(
        result.saes,
        model,
        text(assets.HELDOUT_TEXT),
        tokens=config.tokens,
        spliced_tokens=min(8192, config.tokens),
    )
    if progress:
        print(f"{evaluation.text()}\ncollecting passages ...", flush=True)
    batches = min(_PASSAGE_BATCHES, -(-config.tokens // (16 * 256)))
    sample = islice(text(assets.TRAIN_TEXT), batches)
    features = best_features(result.saes, model, tokenizer, sample)
    record = files.read_json(assets.TRAINING)
    kept = ("parameters", "heldout_perplexity", "heldout_bytes_per_token")
    summary = {"d_sae": training.sae.d_sae, "model_layers": model.config.num_hidden_layers}
    return {
        "metrics": Table.read(out / "metrics.jsonl"),
        "eval": evaluation,
        **feature_tables(features),
        "summary": Table([summary | {name: record[name] for name in kept}]),
    }


def feature_tables(features: Mapping[str, Sequence[Feature]]) -> dict[str, Table]:
    """Features of each hook point as the tables `features` and `passages`."""
    found, passages = Table(), Table()
    for name, of_layer in features.items():
        for feature in of_layer:
            key = {"hook_point": name, "feature": feature.number}
            values = {"density": feature.density, "largest": feature.largest}
            found.append(key | values | {"promoted": feature.promoted})
            for passage in feature.passages:
                passages.append(key | passage._asdict())
    return {"features": found, "passages": passages}
