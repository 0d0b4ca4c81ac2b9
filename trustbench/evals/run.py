"""Evaluating a run directory: its SAEs, its model, the part of its text that it did not train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trustbench import devices, files
from trustbench.data import Documents, TokenStream
from trustbench.errors import CheckpointError
from trustbench.evals.sae import EvalReport, evaluate
from trustbench.models import load_model
from trustbench.sae import load_saes


def evaluate_run(
    run: Path,
    *,
    data: str = "",
    snapshot: int = 0,
    tokens: int,
    spliced_tokens: int,
    device: str = "auto",
) -> EvalReport:
    """`evaluate` for out/final, or out/snapshots/<snapshot>, of a run directory.

    `data` names other text, all of which is used; "" takes the run's held-out documents.

    Raises
    ------
    CheckpointError
        When the directory holds no such SAEs.
    """
    config = files.read_json(run / "config.json")
    directory = run / "snapshots" / str(snapshot) if snapshot else run / "final"
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no SAEs there (is the run finished?)")
    place = devices.resolve(device)
    model, tokenizer = load_model(config["model"], device=place)
    return evaluate(
        {name: sae.to(place) for name, sae in load_saes(directory).items()},
        model,
        evaluation_stream(config, tokenizer, data),
        tokens=tokens,
        spliced_tokens=spliced_tokens,
    )


def evaluation_stream(config: dict[str, Any], tokenizer: Any, data: str = "") -> TokenStream:
    """The held-out part of a run's text, or all of `data`, once."""
    documents = Documents(
        data or config["data"],
        field=config["data_field"],
        split=config["data_split"],
        separator=config["document_separator"],
    )
    return TokenStream(
        documents,
        tokenizer,
        config["context_length"],
        config["model_rows"],
        part="all" if data else "heldout",
        heldout_fraction=0.0 if data else config["heldout_fraction"],
        pack_documents=config["pack_documents"],
        prepend_bos=config["prepend_bos"],
        repeat=False,
    )
