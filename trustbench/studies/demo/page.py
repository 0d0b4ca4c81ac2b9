"""The demo's page, from its tables."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from trustbench.report import Table
from trustbench.report import page as pages
from trustbench.report.page import (
    Block,
    Card,
    Cards,
    Column,
    Facts,
    Figure,
    Heading,
    HeatTable,
    Passage,
)

_COLUMNS = (
    Column("fvu", "FVU", ".3f", False),
    Column("cosine", "cosine", ".3f", True),
    Column("loss_recovered", "loss recovered", ".1%", True),
    Column("ce_reconstructed", "CE with SAE", ".3f", False),
    Column("l0", "L0", ".1f"),
    Column("dead_fraction", "never active", ".1%", False),
    Column("dense_fraction", "active > 10 %", ".2%", False),
)


def page(tables: Mapping[str, Table], figures: Mapping[str, Figure]) -> str:
    """The page: training, evaluation, how often features are active, what they respond to."""
    evaluation, summary = tables["eval"], tables["summary"][0]
    about = (
        f"The model: a GPT-NeoX with {summary['model_layers']} layers and"
        f" {summary['parameters'] / 1e6:.1f} million parameters, trained on Shakespeare's plays"
        f" (held-out perplexity {summary['heldout_perplexity']:.1f},"
        f" {summary['heldout_bytes_per_token']:.1f} bytes a token). Sparse autoencoders on the"
        " residual stream after every layer, trained together from one model forward. Everything on"
        " this page was computed on one machine; the file needs nothing else."
    )
    blocks: list[Block] = [
        Facts(_facts(tables)),
        Heading(
            "Training",
            "Measured on the training batches. A feature is dead when it has not been active for a"
            " while.",
        ),
        figures["training"],
        Heading(
            "Evaluation on held-out text",
            f"{evaluation[0]['tokens']:,} tokens that neither the model nor the SAEs were trained on;"
            f" cross-entropies (CE, nats a token) over {evaluation[0]['predicted_tokens']:,} of them,"
            " with the layer's output replaced by its reconstruction. Loss recovered: 100 % is the"
            " model as it is, 0 % the layer's output set to zero. Deeper shades are better within a"
            " column.",
        ),
        HeatTable.of_columns(evaluation, "hook_point", _COLUMNS),
        Heading(
            "How often features are active",
            "Features by the share of held-out tokens they are active on; features never active are"
            " left out.",
        ),
        figures["densities"],
        Heading(
            "What features respond to",
            "Features that read well: strong ones whose peaks fall on one kind of token (first) or on"
            " one token. Each has its top passages, from different places in the text, lined up at"
            " the peak. Shade: activation relative to the feature's largest; hover for the value."
            " Promoted: the tokens whose logits the feature's direction raises most when it is read"
            " by the model's unembedding, which says most about late layers.",
        ),
        *(
            Cards(name, _cards(tables["features"].where(hook_point=name), tables["passages"]))
            for name in tables["features"].unique("hook_point")
        ),
    ]
    return pages.page("SAEs on every layer of a small Shakespeare model", blocks, about)


def _cards(features: Table, passages: Table) -> list[Card]:
    return [
        Card(
            f"feature {row['feature']}",
            f"active on {row['density']:.2%} of tokens · peak {row['largest']:.1f}",
            [
                Passage(p["tokens"], p["activations"], p["peak"])
                for p in passages.where(hook_point=row["hook_point"], feature=row["feature"])
            ],
            row["largest"],
            "promotes",
            row["promoted"],
        )
        for row in features
    ]


def _facts(tables: Mapping[str, Table]) -> dict[str, str]:
    """The headline."""
    metrics, evaluation = tables["metrics"], tables["eval"]
    tokens, seconds = metrics[-1]["tokens"], training_seconds(metrics)
    recovered = [share for share in evaluation["loss_recovered"] if share is not None]
    return {
        "SAEs, one a layer": str(len(evaluation)),
        "features each": f"{tables['summary'][0]['d_sae']:,}",
        "training tokens": f"{tokens:,}",
        "seconds of training": f"{seconds:.0f}",
        "tokens a second, all layers": f"{tokens / seconds:,.0f}",
        "mean FVU": f"{fmean(evaluation['fvu']):.3f}",
        "mean loss recovered": f"{fmean(recovered):.1%}",
        "dead features": f"{fmean(metrics.where(tokens=tokens)['dead_fraction']):.2%}",
    }


def training_seconds(metrics: Table) -> float:
    """How long a run trained, over all its sessions, from the rows of metrics.jsonl."""
    seconds, before = 0.0, 0
    for row in metrics:
        if row["tokens"] > before:  # the first layer's row of every step
            seconds += (row["tokens"] - before) / max(row["tokens_per_second"], 1)
            before = row["tokens"]
    return seconds
