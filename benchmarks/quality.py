"""The report's section on quality: fvu and dead features against tokens and against seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.charts import OURS, plain_numbers, save
from benchmarks.record import Row, by_case
from benchmarks.tables import absent, markdown, milliseconds
from trustbench.studies.demo.charts import pyplot

_HEAD = ("", "version", "learning rate", "fvu", "never active", "ms a step", "seconds of training")


def table(rows: Sequence[Row]) -> str:
    """Markdown: where each contender ends, at each rate; its best rate in bold."""
    parts = []
    for case, found in by_case(list(rows)).items():
        body = []
        for row in found:
            if "absent" in row:
                body.append(absent(row, len(_HEAD)))
                continue
            for rate, end in row["rates"].items():
                best = float(rate) == row["rate"]
                mark = "**" if best else ""
                cells = [row["contender"], row["version"], rate, f"{mark}{end['fvu']:.4f}{mark}"]
                cells += [f"{end['never_active']:.1%}", milliseconds(row) if best else ""]
                body.append([*cells, f"{end['seconds']:.1f}"])
        parts.append(f"{case}\n\n{markdown(_HEAD, body)}")
    return "\n\n".join(parts)


def figure(rows: Sequence[Row], path: Path) -> None:
    """fvu above, dead features below; against tokens left, against seconds right; best rates."""
    present = [row for row in rows if "absent" not in row]
    with pyplot() as plt:
        from matplotlib.ticker import PercentFormatter

        figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharey="row", layout="constrained")
        colours = plt.get_cmap("plasma")
        for i, row in enumerate(present):
            mine = row["contender"] == "trustbench"
            style = {
                "color": OURS if mine else colours(0.25 + 0.55 * i / len(present)),
                "linewidth": 2.4 if mine else 1.3,
                "marker": "o" if mine else "s",
                "markersize": 4 if mine else 3,
            }
            for column, key in enumerate(("tokens", "seconds")):
                at = [point[key] for point in row["curve"]]
                name = f"{row['contender']} (lr {row['rate']:g})"
                fvu, dead = ([p[y] for p in row["curve"]] for y in ("fvu", "never_active"))
                axes[0][column].plot(at, fvu, label=name, **style)
                axes[1][column].plot(at, dead, label=name, **style)
        axes[0][0].set(title="fvu on held-out activations", yscale="log")
        plain_numbers(axes[0][0].yaxis)
        axes[1][0].set(title="features never active on them", xlabel="tokens")
        axes[1][0].yaxis.set_major_formatter(PercentFormatter(1))
        for axis in axes[:, 1]:
            axis.set_xscale("log")
            plain_numbers(axis.xaxis)
        axes[1][1].set_xlabel("seconds of training")
        figure.legend(
            *axes[0][0].get_legend_handles_labels(),
            loc="outside lower center", ncols=3, frameon=False,
        )  # fmt: skip
        save(plt, figure, path)
