"""The report's charts, as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from trustbench.evals import EvalReport

_INK = "#59636e"  # reads on a light and on a dark page
_CURVES = (
    ("fvu", "fraction of variance unexplained", True),
    ("mse", "squared error a token", True),
    ("dead_fraction", "share of dead features", False),
)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any, Any]:
    try:
        import matplotlib
    except ImportError as error:
        from trustbench.errors import InputError

        raise InputError("the report needs matplotlib: pip install 'trustbench[plots]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Any = {
        "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
        "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": "#8c959f55",
        "xtick.color": _INK, "ytick.color": _INK, "axes.grid": True, "grid.color": "#8c959f33",
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
        "axes.titleweight": "bold", "svg.hashsalt": "trustbench",
    }  # fmt: skip
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), squeeze=False, layout="constrained"
        )
    return plt, figure, axes


def _svg(plt: Any, figure: Any) -> str:
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "trustbench"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    # The drawing only: no XML prologue, and no font but the page's own.
    drawing = buffer.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.S)
    return re.sub(r'font-family:[^;"]*|font: ([\d.]+px) [^;"]*', _font, drawing)


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[1]}" if match[1] else "font-family: inherit"


def _colours(plt: Any, count: int) -> list[Any]:
    map_ = plt.get_cmap("viridis")
    return [map_(0.05 + 0.8 * i / max(count - 1, 1)) for i in range(count)]


def training_curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    """A panel a figure of metrics.jsonl, a line a layer, against millions of tokens."""
    names = list(dict.fromkeys(line["hook_point"] for line in metrics))
    plt, figure, axes = _figure(1, len(_CURVES), 11, 3.0)
    for axis, (key, title, logarithmic) in zip(axes[0], _CURVES, strict=True):
        for name, colour in zip(names, _colours(plt, len(names)), strict=True):
            lines = [line for line in metrics if line["hook_point"] == name]
            axis.plot(
                [line["tokens"] / 1e6 for line in lines],
                [line[key] for line in lines],
                color=colour,
                linewidth=1.5,
                label=name,
            )
        axis.set_title(title, loc="left")
        axis.set_xlabel("million tokens")
        if logarithmic:
            axis.set_yscale("log")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(),
        loc="outside lower center", ncols=min(6, len(names)), frameon=False, fontsize=8,
    )  # fmt: skip
    return _svg(plt, figure)


def density_histograms(report: EvalReport) -> str:
    """A panel a layer: how many features are active on what share of the tokens."""
    names = list(report.layers)
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    plt, figure, axes = _figure(rows, columns, 11, 2.1 * rows)
    edges = report.density_edges
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name, colour in zip(axes.flat, names, _colours(plt, len(names)), strict=False):
        counts = report.layers[name].density_histogram
        axis.bar(edges[:-1], counts, width=edges[1] - edges[0], align="edge", color=colour)
        axis.set_title(name, loc="left")
        axis.set_xticks([-5, -4, -3, -2, -1, 0], ["0.001%", "0.01%", "0.1%", "1%", "10%", "all"])
        axis.grid(axis="x", visible=False)
    return _svg(plt, figure)
