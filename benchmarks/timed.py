"""The report's section on a subject whose figures are times alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.charts import time_bars
from benchmarks.record import Row, by_case, ours
from benchmarks.tables import absent, markdown, megabytes, milliseconds, of_floor, times


def table(rows: Sequence[Row]) -> str:
    """Markdown: a table a case; memory where it was measured."""
    parts = []
    for case, found in by_case(list(rows)).items():
        memory = any("peak_mb" in row for row in found)
        head = ["", "version", "ms", "of the floor", "trustbench is"]
        head += ["peak memory, MB"] if memory else []
        mine, body = ours(found), []
        for row in found:
            if "absent" in row:
                body.append(absent(row, len(head)))
                continue
            cells = [row["contender"], row["version"], milliseconds(row), of_floor(row)]
            cells += [times(row, mine)] + ([megabytes(row)] if memory else [])
            body.append(cells)
        parts.append(f"{case}\n\n{markdown(head, body)}")
    return "\n\n".join(parts)


def figure(rows: Sequence[Row], path: Path) -> None:
    """A panel a case."""
    present = [row for row in rows if "absent" not in row]
    time_bars(by_case(present), path)
