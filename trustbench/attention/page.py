"""The page of a model's heads: layer × head maps of their scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trustbench.report import Table
from trustbench.report.page import Block, Facts, Heading, HeatTable, Panels, page
from trustbench.report.table import Row

# Score, heading, the column that its map runs over.
_MAPS = (
    ("induction", "induction", "head"),
    ("previous", "previous token", "head"),
    ("duplicate", "duplicate token", "head"),
    ("sink", "first token (sink)", "head"),
    ("local", "last 8 positions", "head"),
    ("entropy", "normalised entropy", "head"),
    ("within", "divergence within a kv group", "kv_head"),
)
_NULLS = (("z_initial", "random weights"), ("z_shuffled", "permuted keys"))


def heads_page(table: Table) -> str:
    """The HTML, from the table of `heads`."""
    repeated, text, linear = (table.where(part=part) for part in ("repeated", "text", "linear"))
    layers, name = text.unique("layer"), _names(table.unique("layer"))
    heads = sorted({len(text.where(layer=layer)) for layer in layers})
    blocks: list[Block] = [
        Facts(
            {
                "layers with a pattern": str(len(layers)),
                "linear-attention layers": str(len(linear.unique("layer"))),
                "query heads a layer": ", ".join(map(str, heads)) or "-",
                "strongest induction head": _strongest(repeated, name),
            }
        ),
        Heading(
            "On random tokens, said twice",
            "Nothing but the repetition predicts the second half, so these scores owe nothing to"
            " language. Induction: mass on what followed the same token before. Entropy: of"
            " ln(visible keys). Divergence: Jensen-Shannon divergence among the heads of a kv group,"
            " of the most that it can be.",
        ),
        _maps(repeated, name),
        Heading("On the text", f"The same scores on {table[0]['tokens']:,} tokens of the data."),
        _maps(text, name),
    ]
    if len(linear):
        blocks += [
            Heading(
                "Linear-attention layers",
                "These have no pattern over keys. Effective look-back of every head, in tokens:"
                " 1 / (1 - mean decay).",
            ),
            HeatTable.of_map(
                linear, "layer", "head", "look_back", form=".3g", name=name, shaded=False
            ),
        ]
    note = (
        "What every head of every layer looks at. Rows are layers, columns are query heads; heads"
        " that share keys (a kv group) stand together. Shade and number: the score, from 0 to 1"
        " whatever the architecture. Hover for its z-scores against the same architecture with random"
        " weights, and against this model with permuted keys."
    )
    return page(f"Attention of {table[0]['model']}", blocks, note)


def _maps(table: Table, name: Callable[[Any], str]) -> Panels:
    """A map for each score that is defined somewhere (a group of one head has no divergence)."""
    return Panels(
        {
            heading: HeatTable.of_map(
                table, "layer", columns, score, name=name, hint=_hint(score, columns)
            )
            for score, heading, columns in _MAPS
            if any(value is not None for value in table[score])
        }
    )


def _hint(score: str, columns: str) -> Callable[[Row], str]:
    def hint(row: Row) -> str:
        parts = [f"{row['layer']}, {row[columns]}: {row[score]:.3f}"]
        for null, words in _NULLS:
            z = row.get(f"{score}_{null}")
            parts += [f"z against {words}: {z:.1f}"] if z is not None else []
        return "; ".join(parts)

    return hint


def _strongest(repeated: Table, name: Callable[[Any], str]) -> str:
    found = [row for row in repeated if row["induction"] is not None]
    if not found:
        return "-"
    best = max(found, key=lambda row: row["induction"])
    return f"layer {name(best['layer'])}, head {best['head']}: {best['induction']:.2f}"


def _names(layers: list[str]) -> Callable[[str], str]:
    """What a layer is called: its number, where no two have the same; else its path."""
    numbers = [next((part for part in path.split(".") if part.isdigit()), path) for path in layers]
    short = len(set(numbers)) == len(layers)
    return dict(zip(layers, numbers if short else layers, strict=True)).__getitem__
