"""The report's figures, drawn from rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.quality import best
from benchmarks.record import Row, by_case
from benchmarks.scaling_fit import Fit, Point, fit, memory_end, point_of
from trustbench.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def times(rows: Sequence[Row]) -> Figure:
    """A panel a case: milliseconds of every contender on a log axis, the floor as a line."""
    panels = by_case(sorted((r for r in rows if "seconds" in r), key=lambda row: row["seconds"]))
    heights = [len(found) + 1 for found in panels.values()]
    figure, axes = style.subplots(
        len(panels), 1, (9, sum(0.3 * n + 0.6 for n in heights)),
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for axis, (title, found) in zip(axes[:, 0], panels.items(), strict=True):
        _bars(axis, found)
        axis.set(title=title, xscale="log")
        style.plain_numbers(axis.xaxis)
    axes[-1, 0].set_xlabel("milliseconds (red: the floor)")
    return figure


def _bars(axis: Any, rows: Sequence[Row]) -> None:
    names = [", ".join(filter(None, (r["contender"], r.get("matmul")))) for r in rows]
    colours = [style.OURS if r["contender"].startswith("trustbench") else style.OTHERS for r in rows]
    values = [1e3 * row["seconds"] for row in rows]
    bars = axis.barh(names, values, color=colours, height=0.66)
    axis.bar_label(bars, [f"{v:,.3g}" if v < 1000 else f"{v:,.0f}" for v in values], padding=4)
    floors = {i: 1e3 * row["floor"] for i, row in enumerate(rows) if row.get("floor")}
    for i, floor in floors.items():
        axis.plot([floor] * 2, [i - 0.4, i + 0.4], color=style.LIMIT, linewidth=2)
    axis.invert_yaxis()
    axis.set_xlim(min([*values, *floors.values()]) / 2, 2 * max([*values, *floors.values()]))
    axis.grid(axis="y", visible=False)


def quality(rows: Sequence[Row]) -> Figure:
    """fvu above, dead features below; against tokens left, against seconds right; best rates."""
    present = [row for row in best(rows) if "absent" not in row]
    figure, axes = style.subplots(2, 2, (9, 6), sharey="row")
    others = iter(style.category_colours(len(present)))
    for row in present:
        mine = row["contender"] == "trustbench"
        look = {"color": style.OURS if mine else next(others), "linewidth": 2.4 if mine else 1.3}
        look |= {"marker": "o" if mine else "s", "markersize": 4 if mine else 3}
        for column, key in enumerate(("tokens", "trained")):
            name = f"{row['contender']} (lr {row['rate']:g})"
            axes[0][column].plot(row[key], row["fvu"], label=name, **look)
            axes[1][column].plot(row[key], row["never_active"], label=name, **look)
    axes[0][0].set(title="fvu on held-out activations", yscale="log")
    style.plain_numbers(axes[0][0].yaxis)
    axes[1][0].set(title="features never active on them", xlabel="tokens")
    style.percent(axes[1][0].yaxis)
    for axis in axes[:, 1]:
        axis.set_xscale("log")
        style.plain_numbers(axis.xaxis)
    axes[1][1].set_xlabel("seconds of training")
    style.legend_below(figure, axes[0][0], columns=3)
    return figure


def scaling(rows: Sequence[Row]) -> Figure:
    """Cost against each size, measured and fitted, up to where memory ends; and over processes."""
    steps = [row for row in rows if row["sweep"] in Point._fields]
    ranks = [row for row in rows if row["sweep"] not in Point._fields]
    variables = list(dict.fromkeys(row["sweep"] for row in steps if row["seconds"]))
    panels = len(variables) + bool(ranks)
    columns = min(3, panels)
    height = -(-panels // columns)
    figure, grid = style.subplots(height, columns, (4 * columns, 3.2 * height))
    axes = grid.flatten()
    for axis in axes[panels:]:
        axis.set_visible(False)
    if variables:
        cost, free = fit(steps), min(row["free"] for row in steps)
        for axis, variable in zip(axes, variables, strict=False):
            own = [row for row in steps if row["sweep"] == variable and row["seconds"]]
            _sweep(axis, variable, own, cost, free)
        axes[0].legend(fontsize=8)
    if ranks:
        _ranks(axes[panels - 1], ranks)
    return figure


def _sweep(axis: Any, variable: str, rows: Sequence[Mapping[str, Any]], cost: Fit, free: int) -> None:
    """Seconds a step against one size, both logarithmic."""
    base = point_of(rows[0])
    at = [row[variable] for row in rows]
    axis.plot(at, [row["seconds"] for row in rows], "o", color=style.OURS, label="measured")
    end = memory_end(base, variable, free, rows[0]["threads"], bf16=rows[0]["bf16"])
    last = end or base.F
    along = np.geomspace(min(at), max(last, *at), 60)
    seconds = [cost.seconds(base._replace(**{variable: value})) for value in along]
    axis.plot(along, seconds, color=style.OTHERS, zorder=1, label="fitted")
    if end:
        axis.axvline(end, color=style.LIMIT, linestyle=":", label="memory ends")
        reached = cost.seconds(base._replace(**{variable: end}))
        axis.plot([end], [reached], "x", color=style.LIMIT, markersize=8)
        axis.annotate(
            f"{end:,}", (end, reached), (-6, -4), textcoords="offset points", ha="right",
            color=style.LIMIT, fontsize=8,
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel=variable, ylabel="seconds a step")


def _ranks(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Speed-up against processes, a line a way of scaling."""
    most = max(row["processes"] for row in rows)
    axis.plot([1, most], [1, most], color=style.OTHERS, linestyle=":", label="ideal")
    names = list(dict.fromkeys(row["sweep"] for row in rows))
    for name, colour in zip(names, style.category_colours(len(names)), strict=True):
        own = sorted((r for r in rows if r["sweep"] == name), key=lambda r: r["processes"])
        at, speed_up = ([r[key] for r in own] for key in ("processes", "speed_up"))
        axis.plot(at, speed_up, "o-", color=colour, label=name)
    axis.set(xlabel="processes", ylabel="speed-up", ylim=(0, None))
    axis.set_xticks(sorted({row["processes"] for row in rows}))
    axis.legend(fontsize=8)
