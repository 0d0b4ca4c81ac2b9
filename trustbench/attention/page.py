"""Layer × head maps of head scores, as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.resources import files as resources
from pathlib import Path
from string import Template
from typing import Any

from trustbench import files

# Score, heading.
_MAPS = (
    ("induction", "induction"),
    ("previous", "previous token"),
    ("duplicate", "duplicate token"),
    ("sink", "first token (sink)"),
    ("local", "last 8 positions"),
    ("entropy", "normalised entropy"),
    ("within", "divergence within a kv group"),
)
Scores = Mapping[str, Mapping[str, list[float | None]]]  # {layer: {score: a number a head}}


def write_page(path: Path, profile: Mapping[str, Any]) -> None:
    """Write the maps of what `heads` returns."""
    template = Template((resources("trustbench.attention") / "heads.html").read_text("utf-8"))
    repeated, text = profile["repeated"], profile["text"]
    heads = {len(scores["induction"]) for scores in text.values()}
    facts = {
        "layers with a pattern": str(len(text)),
        "linear-attention layers": str(len(profile["linear"])),
        "query heads a layer": ", ".join(map(str, sorted(heads))) or "-",
        "strongest induction head": _strongest(repeated["raw"]),
    }
    page = template.substitute(
        style=(resources("trustbench.evals") / "page.css").read_text("utf-8"),
        title=escape(f"Attention of {profile['model']}"),
        facts="".join(
            f'<div class="fact"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
            for label, value in facts.items()
        ),
        repeated=_maps(repeated["raw"], repeated),
        tokens=f"{profile['tokens']:,}",
        text=_maps(text, {}),
        linear=_linear(profile["linear"]),
    )
    files.atomic_write_text(path, page)


def _strongest(scores: Scores) -> str:
    found = [
        (value, f"layer {_short(layer)}, head {i}")
        for layer, heads in scores.items()
        for i, value in enumerate(heads["induction"])
        if value is not None
    ]
    return "{1}: {0:.2f}".format(*max(found)) if found else "-"


def _maps(scores: Scores, nulls: Mapping[str, Scores]) -> str:
    return "".join(
        f'<div class="panel"><h4>{escape(heading)}</h4>{_map(scores, name, nulls)}</div>'
        for name, heading in _MAPS
        # Where every head has keys of its own there is no group to differ within.
        if any(value is not None for heads in scores.values() for value in heads[name])
    )


def _map(scores: Scores, name: str, nulls: Mapping[str, Scores]) -> str:
    rows = []
    for layer, heads in scores.items():
        cells = []
        for i, value in enumerate(heads[name]):
            if value is None:
                cells.append("<td>–</td>")
                continue
            hint = [f"{layer}, {i}: {value:.3f}"]
            for null, words in (("z_initial", "random weights"), ("z_shuffled", "permuted keys")):
                z = nulls[null][layer][name][i] if null in nulls else None
                hint += [f"z against {words}: {z:.1f}"] if z is not None else []
            cells.append(
                f'<td style="--shade:{min(max(value, 0.0), 1.0):.2f}"'
                f' title="{escape("; ".join(hint))}">{f"{value:.2f}".removeprefix("0")}</td>'
            )
        rows.append(f"<tr><th>{escape(_short(layer))}</th>{''.join(cells)}</tr>")
    return f'<table class="heat">{"".join(rows)}</table>'


def _short(layer: str) -> str:
    """The layer's number, as most paths have one."""
    numbers = [part for part in layer.split(".") if part.isdigit()]
    return numbers[0] if numbers else layer


def _linear(layers: Mapping[str, Mapping[str, list[float]]]) -> str:
    if not layers:
        return ""
    rows = "".join(
        f"<tr><th>{escape(_short(layer))}</th>"
        + "".join(f"<td>{value:.3g}</td>" for value in values["look_back"])
        + "</tr>"
        for layer, values in layers.items()
    )
    return (
        "<h2>Linear-attention layers</h2><p class='note'>These have no pattern over keys. Effective"
        " look-back of every head, in tokens: 1 / (1 - mean decay).</p>"
        f'<div class="panel"><table class="heat">{rows}</table></div>'
    )
