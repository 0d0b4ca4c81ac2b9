"""The demo's figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trustbench.report import Table, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Column of metrics.jsonl, heading, how its axis is drawn.
_CURVES = (
    ("fvu", "fraction of variance unexplained", "log"),
    ("loss", "loss (squared error a token, and penalties)", "log"),
    ("l0", "active features a token (L0)", "linear"),
    ("dead_fraction", "dead features", "percent"),
)


def training_curves(metrics: Table) -> Figure:
    """A panel a measurement, a line a layer, against millions of tokens.

    What is the same number all along (the L0 of a TopK SAE) has no panel: the evaluation says it.
    """
    names = metrics.unique("hook_point")
    curves = [c for c in _CURVES if c[0] == "fvu" or len(set(metrics[c[0]])) > 1]
    figure, axes = style.subplots(1, len(curves), (11, 3.0))
    for axis, (column, title, scale) in zip(axes[0], curves, strict=True):
        for name, colour in zip(names, style.layer_colours(len(names)), strict=True):
            lines = metrics.where(hook_point=name)
            million = [tokens / 1e6 for tokens in lines["tokens"]]
            axis.plot(million, lines[column], color=colour, label=name)
        axis.set(title=title, xlabel="million tokens")
        if scale == "log":
            axis.set_yscale("log")
            style.plain_numbers(axis.yaxis)
        if scale == "percent":
            style.percent(axis.yaxis)
            axis.set_ylim(bottom=0)
    style.legend_below(figure, axes[0][0])
    return figure


def density_histograms(evaluation: Table) -> Figure:
    """A panel a layer: how many features are active on what share of the tokens."""
    columns = min(3, len(evaluation))
    rows = -(-len(evaluation) // columns)
    figure, axes = style.subplots(rows, columns, (11, 2.2 * rows), sharey=True)
    figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[union-attr, call-arg]
    for axis in axes.flat[len(evaluation) :]:
        axis.set_visible(False)
    colours = style.layer_colours(len(evaluation))
    for axis, layer, colour in zip(axes.flat, evaluation, colours, strict=False):
        edges, counts = layer["density_edges"], layer["density_histogram"]
        axis.bar(edges[:-1], counts, width=0.9 * (edges[1] - edges[0]), align="edge", color=colour)
        # What lies below 1e-5 is too rare for any text that the demo reads.
        axis.set(title=layer["hook_point"], xlim=(max(edges[0], -5), edges[-1]))
        axis.set_xticks([-4, -3, -2, -1, 0], ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"])
        axis.grid(axis="x", visible=False)
    for row in axes:
        row[0].set_ylabel("features")
    return figure
