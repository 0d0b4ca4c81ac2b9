"""The report's section on shuffling buffers: time, and how well the order is mixed."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import timed
from benchmarks.record import Row, by_case
from benchmarks.tables import markdown

_HEAD = (
    "", "of memcpy's rate", "pairs of one document in a batch",
    "median distance of neighbours, tokens", "spread of a token's delay, batches",
)  # fmt: skip


def of_memcpy(row: Row, rows: Sequence[Row]) -> float:
    """The rate of a buffer, of that of copying the same bytes twice."""
    copy = next(r for r in rows if r["contender"] == "memcpy" and r["case"] == row["case"])
    return copy["seconds"] / row["seconds"]


def table(rows: Sequence[Row]) -> str:
    """Markdown: times; then mixing, where few pairs of one document and far neighbours are good."""
    parts = [timed.table(rows)]
    mixed = [row for row in rows if row.get("mixing")]
    for case, found in by_case(mixed).items():
        body = []
        for row in found:
            mixing = row["mixing"]
            cells = [row["contender"], f"{of_memcpy(row, rows):.0%}"]
            cells += [f"{mixing['same_document']:.2%}", f"{mixing['distance']:,.0f}"]
            body.append([*cells, f"{mixing['spread']:.1f}"])
        parts.append(f"How the order is mixed: {case}\n\n{markdown(_HEAD, body)}")
    return "\n\n".join(parts)


figure = timed.figure
