"""The report's charts: bars of times, written as SVG that reads on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import Row
from trustbench.studies.demo.charts import pyplot

OURS, THEIRS, FLOOR = "#21918c", "#8c959f", "#d1495b"


def save(plt: Any, figure: Any, path: Path) -> None:
    """Without a background: the page's own shows."""
    figure.savefig(path, transparent=True, bbox_inches="tight")
    plt.close(figure)


def plain_numbers(axis: Any) -> None:
    """Of a log axis: 50, 100, 200 instead of powers."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def time_bars(panels: Mapping[str, Sequence[Row]], path: Path) -> None:
    """A panel a case: milliseconds of every contender on a log axis, the floor as a line.

    Where rows say a `matmul`, it stands in the label.
    """
    with pyplot() as plt:
        height = sum(0.3 * len(rows) + 0.9 for rows in panels.values())
        figure, axes = plt.subplots(
            len(panels), 1, figsize=(9, height), squeeze=False, layout="constrained",
            gridspec_kw={"height_ratios": [len(rows) + 1 for rows in panels.values()]},
        )  # fmt: skip
        for axis, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
            rows = sorted(rows, key=lambda row: row["seconds"])
            names = [", ".join(filter(None, (r["contender"], r.get("matmul")))) for r in rows]
            colours = [OURS if r["contender"].startswith("trustbench") else THEIRS for r in rows]
            values = [1e3 * r["seconds"] for r in rows]
            bars = axis.barh(names, values, color=colours, height=0.66)
            axis.bar_label(
                bars, [f"{v:,.3g}" if v < 1000 else f"{v:,.0f}" for v in values], padding=4
            )
            for i, row in enumerate(rows):
                if row.get("floor"):
                    axis.plot([1e3 * row["floor"]] * 2, [i - 0.4, i + 0.4], color=FLOOR, linewidth=2)
            axis.invert_yaxis()
            axis.set(title=title, xscale="log")
            floors = [1e3 * row["floor"] for row in rows if row.get("floor")]
            axis.set_xlim(min(values + floors) / 2, 2 * max(values + floors))
            plain_numbers(axis.xaxis)
            axis.grid(axis="y", visible=False)
        axes[-1, 0].set_xlabel("milliseconds (red: the floor)")
        save(plt, figure, path)
