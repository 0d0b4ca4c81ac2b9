"""Markdown tables of rows: the columns that subjects share."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.record import Row


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table; every column after the first holds figures."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def milliseconds(row: Row) -> str:
    """The median, with three figures that mean something."""
    taken = 1e3 * row["seconds"]
    return f"{taken:,.0f}" if taken >= 100 else f"{taken:.1f}" if taken >= 10 else f"{taken:.2f}"


def of_floor(row: Row) -> str:
    """How much of the time the machine's ceilings demand."""
    return f"{row['floor'] / row['seconds']:.0%}" if row.get("floor") else ""


def times(row: Row, base: Row | None) -> str:
    """How many times as long as `base` it takes."""
    return f"{row['seconds'] / base['seconds']:.2f} ×" if base else ""


def megabytes(row: Row) -> str:
    """Peak memory."""
    return f"{row['peak_mb']:,.0f}" if row.get("peak_mb") is not None else ""


def absent(row: Row, columns: int) -> list[str]:
    """A peer that could not be measured, and why, in a row of so many columns."""
    return [row["contender"], f"absent: {row['absent']}", *[""] * (columns - 2)]
