"""evaluate(): the SAEs of a run directory, on the part of its text that it did not train on."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from trustbench import devices, files
from trustbench.activations.config import TextConfig
from trustbench.errors import CheckpointError
from trustbench.evals.sae import evaluate_saes
from trustbench.fields import Config, NonEmptyStr, NonNegativeInt, PositiveInt
from trustbench.models import load_model
from trustbench.report import Table, about
from trustbench.sae import load_saes


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Config):
    """What is evaluated, and on which text.

    Parameters
    ----------
    run
        The run's directory (`out` of its TrainConfig).
    data
        Other text to evaluate on, all of it; empty: the documents that the run held out.
    snapshot
        Token count of a snapshot to evaluate; 0: the final SAEs.
    tokens
        Activations to evaluate, at least, if the text has them.
    spliced_tokens
        Of these, tokens to run the model on four times a layer for the cross-entropies.
    device
        auto (the first GPU, else the CPU), cpu, cuda or cuda:N.
    """

    run: NonEmptyStr
    data: str = ""
    snapshot: NonNegativeInt = 0
    tokens: PositiveInt = 100_000
    spliced_tokens: PositiveInt = 20_000
    device: str = "auto"


def evaluate(config: EvalConfig, *, progress: bool = True) -> Table:
    """Evaluate the SAEs of a run on the held-out part of its text, or on other text.

    Measured are fvu, L0, dead and dense features, and the model's cross-entropy with each layer
    replaced. Writes eval.jsonl into the run's directory.

    Parameters
    ----------
    config : EvalConfig
    progress : bool
        Print the table.

    Returns
    -------
    Table
        See evaluate_saes.

    Raises
    ------
    CheckpointError
        When the directory holds no such SAEs.
    DataError
        When the text holds no two tokens.
    """
    started = time.monotonic()
    run = Path(config.run)
    saved = files.read_json(run / "config.json")
    directory = run / "snapshots" / str(config.snapshot) if config.snapshot else run / "final"
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no SAEs there (is the run finished?)")
    text = TextConfig.from_dict({f.name: saved[f.name] for f in dataclasses.fields(TextConfig)})
    device = devices.resolve(config.device)
    model, tokenizer = load_model(text.model, device=device)
    if config.data:
        text = text.replace(data=config.data, heldout_fraction=0.0)
    table = evaluate_saes(
        {name: sae.to(device) for name, sae in load_saes(directory).items()},
        model,
        text.stream(tokenizer, "all" if config.data else "heldout"),
        tokens=config.tokens,
        spliced_tokens=config.spliced_tokens,
    )
    seconds = time.monotonic() - started
    table.write(run / "eval.jsonl", about(config, device=device, seed=saved["seed"], seconds=seconds))
    if progress:
        print(f"{table.text()}\nwritten to {run / 'eval.jsonl'}")
    return table
