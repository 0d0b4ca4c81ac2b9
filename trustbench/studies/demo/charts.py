"""The report's charts, as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from trustbench.errors import InputError
from trustbench.evals import EvalReport

_INK = "#7d8590"  # reads on a light and on a dark page
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "trustbench",
    "font.family": "sans-serif", "font.size": 9,
    "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": "#8c959f55",
    "xtick.color": _INK, "ytick.color": _INK, "xtick.major.size": 0, "ytick.major.size": 0,
    "ytick.minor.size": 0, "axes.grid": True, "grid.color": "#8c959f33",
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.axisbelow": True,
}  # fmt: skip
# Figure of metrics.jsonl, heading, how its axis is drawn.
_CURVES = (
    ("fvu", "fraction of variance unexplained", "log"),
    ("loss", "loss (squared error a token, and penalties)", "log"),
    ("l0", "active features a token (L0)", "linear"),
    ("dead_fraction", "dead features", "percent"),
)


@contextmanager
def pyplot() -> Iterator[Any]:
    """matplotlib.pyplot in the report's style."""
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("the report needs matplotlib: pip install 'trustbench[plots]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Any = _STYLE  # matplotlib types the keys as literals
    with plt.rc_context(style):
        yield plt


def _svg(plt: Any, figure: Any) -> str:
    buffer = io.StringIO()
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
    return [map_(0.12 + 0.7 * i / max(count - 1, 1)) for i in range(count)]


def training_curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    """A panel a figure of metrics.jsonl, a line a layer, against millions of tokens.

    A figure that is the same number all along (the L0 of a TopK SAE) has no panel: the table of the
    evaluation says it.
    """
    names = list(dict.fromkeys(line["hook_point"] for line in metrics))
    curves = [c for c in _CURVES if c[0] == "fvu" or len({line[c[0]] for line in metrics}) > 1]
    with pyplot() as plt:
        from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, ScalarFormatter

        figure, axes = plt.subplots(
            1, len(curves), figsize=(11, 3.0), squeeze=False, layout="constrained"
        )
        for axis, (key, title, scale) in zip(axes[0], curves, strict=True):
            for name, colour in zip(names, _colours(plt, len(names)), strict=True):
                lines = [line for line in metrics if line["hook_point"] == name]
                million = [line["tokens"] / 1e6 for line in lines]
                axis.plot(million, [line[key] for line in lines], color=colour, label=name)
            axis.set(title=title, xlabel="million tokens")
            if scale == "log":
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter(ScalarFormatter())
                axis.yaxis.set_minor_formatter(NullFormatter())
            if scale == "percent":
                axis.yaxis.set_major_formatter(PercentFormatter(1))
                axis.set_ylim(bottom=0)
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
    edges = report.density_edges
    width = 0.9 * (edges[1] - edges[0])
    first = max(edges[0], -5)  # what lies below is too rare for any text a report is made from
    with pyplot() as plt:
        figure, axes = plt.subplots(
            rows, columns, figsize=(11, 2.2 * rows), squeeze=False, sharey=True,
            layout="constrained",
        )  # fmt: skip
        figure.get_layout_engine().set(h_pad=0.12)
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for axis, name, colour in zip(axes.flat, names, _colours(plt, len(names)), strict=False):
            counts = report.layers[name].density_histogram
            axis.bar(edges[:-1], counts, width=width, align="edge", color=colour)
            axis.set(title=name, xlim=(first, edges[-1]))
            axis.set_xticks([-4, -3, -2, -1, 0], ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"])
            axis.grid(axis="x", visible=False)
        for row in axes:
            row[0].set_ylabel("features")
        return _svg(plt, figure)
