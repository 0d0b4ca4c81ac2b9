"""The curves: cost against each size, measured and fitted, up to where memory ends."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.scaling_fit import Fit, Point, fit, memory_end, point_of

_MEASURED, _FITTED, _END = "#1f77b4", "#7d8590", "#d62728"


def figure(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write a figure, one panel a sweep and one for the processes; the suffix says the format."""
    from matplotlib.figure import Figure

    steps = [row for row in rows if row["sweep"] in Point._fields]
    ranks = [row for row in rows if row["sweep"] not in Point._fields]
    variables = list(dict.fromkeys(row["sweep"] for row in steps if row["seconds"]))
    panels = len(variables) + bool(ranks)
    columns = min(3, panels)
    height = -(-panels // columns)
    drawing = Figure(figsize=(4 * columns, 3.2 * height), layout="constrained")
    axes = drawing.subplots(height, columns, squeeze=False).flatten()
    for axis in axes[panels:]:
        axis.set_visible(False)
    for axis in axes[:panels]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    if variables:
        cost, free = fit(steps), min(row["free"] for row in steps)
        for axis, variable in zip(axes, variables, strict=False):
            own = [row for row in steps if row["sweep"] == variable and row["seconds"]]
            _sweep(axis, variable, own, cost, free)
        axes[0].legend(frameon=False, fontsize=8)
    if ranks:
        _ranks(axes[panels - 1], ranks)
    drawing.savefig(path)


def _sweep(axis: Any, variable: str, rows: Sequence[Mapping[str, Any]], cost: Fit, free: int) -> None:
    """Seconds a step against one size, both logarithmic."""
    base = point_of(rows[0])
    at = [row[variable] for row in rows]
    axis.plot(at, [row["seconds"] for row in rows], "o", color=_MEASURED, label="measured")
    end = memory_end(base, variable, free, rows[0]["threads"], bf16=rows[0]["bf16"])
    last = end or base.F
    along = np.geomspace(min(at), max(last, *at), 60)
    seconds = [cost.seconds(base._replace(**{variable: value})) for value in along]
    axis.plot(along, seconds, color=_FITTED, zorder=1, label="fitted")
    if end:
        axis.axvline(end, color=_END, linestyle=":", label="memory ends")
        reached = cost.seconds(base._replace(**{variable: end}))
        axis.plot([end], [reached], "x", color=_END, markersize=8)
        axis.annotate(
            f"{end:,}", (end, reached), (-6, -4), textcoords="offset points", ha="right",
            color=_END, fontsize=8,
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel=variable, ylabel="seconds a step")


def _ranks(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Speed-up against processes, a line a way of scaling."""
    most = max(row["processes"] for row in rows)
    axis.plot([1, most], [1, most], color=_FITTED, linestyle=":", label="ideal")
    for name in dict.fromkeys(row["sweep"] for row in rows):
        own = sorted((r for r in rows if r["sweep"] == name), key=lambda r: r["processes"])
        axis.plot([r["processes"] for r in own], [r["speed_up"] for r in own], "o-", label=name)
    axis.set(xlabel="processes", ylabel="speed-up", ylim=(0, None))
    axis.set_xticks(sorted({row["processes"] for row in rows}))
    axis.legend(frameon=False, fontsize=8)
