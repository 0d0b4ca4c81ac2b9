"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files as resources
from pathlib import Path
from string import Template
from typing import Any

from trustbench import files
from trustbench.evals import EvalReport
from trustbench.studies.demo.charts import density_histograms, training_curves
from trustbench.studies.demo.passages import Feature, Passage

# Column, heading, how to print it, and whether more is better; None: neither.
_COLUMNS: tuple[tuple[str, str, str, bool | None], ...] = (
    ("fvu", "FVU", ".3f", False),
    ("cosine", "cosine", ".3f", True),
    ("loss_recovered", "loss recovered", ".1%", True),
    ("ce_reconstructed", "CE with SAE", ".3f", False),
    ("l0", "L0", ".1f", None),
    ("dead_fraction", "never active", ".1%", False),
    ("dense_fraction", "active > 10 %", ".1%", False),
)


def write_report(
    path: Path,
    *,
    title: str,
    about: str,
    facts: Mapping[str, str],
    metrics: Sequence[Mapping[str, Any]],
    report: EvalReport,
    features: Mapping[str, Sequence[Feature]],
) -> None:
    """Write the report.

    Parameters
    ----------
    path : Path
    title, about : str
        The heading, and what stands under it.
    facts : label to value: the headline figures
    metrics : the lines of metrics.jsonl
    report : EvalReport
    features : the best features of each hook point
    """
    template = Template((resources("trustbench.studies.demo") / "report.html").read_text("utf-8"))
    page = template.substitute(
        style=(resources("trustbench.evals") / "page.css").read_text("utf-8"),
        title=escape(title),
        about=escape(about),
        facts="".join(
            f'<div class="fact"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
            for label, value in facts.items()
        ),
        curves=training_curves(metrics),
        heatmap=_heatmap(report),
        densities=density_histograms(report),
        evaluated=f"{report.tokens:,}",
        predicted=f"{report.predicted_tokens:,}",
        features="".join(_layer(name, found) for name, found in features.items()),
    )
    files.atomic_write_text(path, page)


def _heatmap(report: EvalReport) -> str:
    """Layer by metric: every cell has its number; the shade is its rank within the column."""
    head = "".join(f"<th>{escape(label)}</th>" for _, label, _, _ in _COLUMNS)
    body = []
    for name, layer in report.layers.items():
        cells = []
        for column, _, form, more_is_better in _COLUMNS:
            value = getattr(layer, column)
            if not math.isfinite(value):  # loss recovered, where there is no loss to recover
                cells.append("<td>–</td>")
                continue
            values = [getattr(other, column) for other in report.layers.values()]
            values = [v for v in values if math.isfinite(v)]
            spread = max(values) - min(values)
            place = (value - min(values)) / spread if spread > 0 else 0.5
            shade = {None: 0.0, True: place, False: 1 - place}[more_is_better]
            cells.append(f'<td style="--shade:{shade:.2f}">{value:{form}}</td>')
        body.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    return f'<table class="heat"><tr><th></th>{head}</tr>{"".join(body)}</table>'


def _layer(name: str, features: Sequence[Feature]) -> str:
    cards = "".join(_card(feature) for feature in features)
    return (
        f"<details open><summary>{escape(name)}</summary><div class='cards'>{cards}</div></details>"
    )


def _card(feature: Feature) -> str:
    passages = "".join(f"<p>{_passage(passage, feature.largest)}</p>" for passage in feature.passages)
    promoted = "".join(f"<code>{_visible(token)}</code>" for token in feature.promoted)
    return (
        f'<div class="card"><h4>feature {feature.number}'
        f"<small>active on {feature.density:.2%} of tokens · peak {feature.largest:.1f}</small>"
        f'</h4>{passages}<div class="promoted">promotes {promoted}</div></div>'
    )


def _passage(passage: Passage, largest: float) -> str:
    """The text before the peak, and the peak with what follows: two halves that line up."""
    spans = []
    for token, activation in zip(passage.tokens, passage.activations, strict=True):
        text = _visible(token)
        if activation > 0:
            share = min(1.0, activation / largest)
            text = f'<mark style="--a:{share:.2f}" title="{activation:.2f}">{text}</mark>'
        spans.append(text)
    halves = "".join(spans[: passage.peak]), "".join(spans[passage.peak :])
    return "".join(f"<span><span>{half}</span></span>" for half in halves)


def _visible(token: str) -> str:
    """A token as HTML; line breaks as signs, other characters that do not print as their codes."""
    shown = ("\n" if c == "\n" else c if c.isprintable() else f"\\x{ord(c):02x}" for c in token)
    return escape("".join(shown)).replace("\n", "<i>↵</i>")
