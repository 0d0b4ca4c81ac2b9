"""A recorded run: pytest-benchmark's JSON, with our machine and our rows in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trustbench.errors import DataError

Row = dict[str, Any]


class Record:
    """One run's figures.

    Parameters
    ----------
    found : the parsed JSON
    """

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.machine: dict[str, Any] = found["machine_info"]
        self._benchmarks: list[dict[str, Any]] = found["benchmarks"]
        self._absent: list[Row] = found.get("absent", [])

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a file that `trustbench bench` wrote.

        Raises
        ------
        DataError
            When it is not one.
        """
        try:
            return cls(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a record of trustbench bench ({error})") from error

    def rows(self, subject: str) -> list[Row]:
        """Every contender's row: what its test wrote, with median, least and largest seconds."""
        rows: list[Row] = []
        for benchmark in self._benchmarks:
            written = benchmark["extra_info"].get(subject)
            if written is None:
                continue
            if isinstance(written, list):  # a test that measures a whole curve
                rows += written
                continue
            stats = benchmark["stats"]
            times = {
                "seconds": stats["median"], "least": stats["min"], "largest": stats["max"],
                "rounds": stats["rounds"],
            }  # fmt: skip
            rows.append(times | written)
        return rows + [row for row in self._absent if row["subject"] == subject]

    def about(self) -> str:
        """One line: machine, versions, date and commit."""
        m = self.machine
        ceilings = m.get("ceilings")
        measured = ""
        if ceilings:
            rates = ", ".join(f"{n} {v / 1e9:.0f}" for n, v in ceilings["flops"].items())
            measured = (
                f" Ceilings measured at the start: copy {ceilings['bytes_per_second'] / 1e9:.1f}"
                f" GB/s, torch's matmul in GFLOP/s: {rates}."
            )
        return (
            f"{m['cpu']} ({m['isa']}), {m['threads']} threads of {m['cores']} cores, torch"
            f" {m['torch']}, Python {m['python']}, trustbench {m['trustbench']} at commit"
            f" {m['commit']}, {m['date']}, `{m['scale']}`.{measured}"
        )


def by_case(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of one case together, in the order in which they came; the absent at the end."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return cases


def ours(rows: list[Row], **like: Any) -> Row | None:
    """trustbench's own row among those of one case, that has these values."""
    for row in rows:
        wanted = row["contender"] == "trustbench" and "absent" not in row
        if wanted and all(row.get(key) == value for key, value in like.items()):
            return row
    return None
