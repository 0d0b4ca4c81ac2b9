"""The report's section on one training step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.charts import time_bars
from benchmarks.record import Row, by_case, ours
from benchmarks.tables import absent, markdown, megabytes, milliseconds, of_floor, times

_HEAD = (
    "", "version", "matmul", "ms", "of the floor", "trustbench fp32 is", "trustbench bf16 is",
    "peak memory, MB", "of it in the step, MB",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Markdown: a table a shape."""
    parts = []
    for case, found in by_case(list(rows)).items():
        fp32, bf16 = (ours(found, matmul=kind) for kind in ("fp32", "bf16"))
        body = []
        for row in found:
            if "absent" in row:
                body.append(absent(row, len(_HEAD)))
                continue
            cells = [
                row["contender"],
                row["version"],
                row["matmul"],
                milliseconds(row),
                of_floor(row),
            ]
            cells += [times(row, fp32), times(row, bf16), megabytes(row), f"{row['step_mb']:,.0f}"]
            body.append(cells)
        parts.append(f"{case}\n\n{markdown(_HEAD, body)}")
    return "\n\n".join(parts)


def figure(rows: Sequence[Row], path: Path) -> None:
    """A panel a shape."""
    present = [row for row in rows if "absent" not in row]
    time_bars(by_case(present), path)
