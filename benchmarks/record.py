"""A recorded run: a row a line (bench.jsonl), and what it was measured on (bench.about.json)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trustbench import report
from trustbench.errors import DataError
from trustbench.ops import dispatch
from trustbench.report.table import Row, about_path

__all__ = ["RESULTS", "Row", "about", "by_case", "ours", "read", "where"]
RESULTS = Path(__file__).parent / "results"


def about(scale: str, ceilings: Mapping[str, float], device: torch.device) -> dict[str, Any]:
    """What a run is measured on: machine, versions, commit, date, and the ceilings of its floors."""
    return report.about({"scale": scale, "ceilings": dict(ceilings)}, device=device) | {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "isa": dispatch.native().isa(),
        "cores": os.cpu_count(),
    }


def read(path: Path) -> tuple[report.Table, dict[str, Any]]:
    """The rows of a run, and what they were measured on.

    A row holds the subject, case and contender it is of; median, least and largest seconds of so many
    rounds, and whatever else was measured; or, under "absent", why nothing was.

    Raises
    ------
    DataError
        When it is not what `trustbench bench` wrote.
    """
    try:
        said = json.loads(about_path(path).read_text())
        _ = said["config"]["scale"], said["config"]["ceilings"]
        table = report.Table.read(path)
        if any("subject" not in row for row in table):
            raise ValueError("a row without a subject")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a record of trustbench bench ({error})") from error
    return table, said


def where(said: Mapping[str, Any]) -> str:
    """One line: machine, versions, date, commit and ceilings."""
    top, versions = said["config"]["ceilings"], said["versions"]
    return (
        f"{said['device']} ({said['isa']}), {said['threads']} threads of {said['cores']} cores, torch"
        f" {versions['torch']}, Python {versions['python']}, trustbench {versions['trustbench']} at"
        f" commit {said['commit']}, {said['date']}, `{said['config']['scale']}`. Ceilings measured at"
        f" the start: copy {top['copy'] / 1e9:.1f} GB/s, torch's matmul in GFLOP/s: fp32"
        f" {top['fp32'] / 1e9:.0f}, bf16 {top['bf16'] / 1e9:.0f}."
    )


def by_case(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of one case together, in the order in which they came."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return cases


def ours(rows: Sequence[Row], **like: Any) -> Row | None:
    """trustbench's own row among those of one case, that has these values."""
    for row in rows:
        wanted = row["contender"] == "trustbench" and "absent" not in row
        if wanted and all(row.get(key) == value for key, value in like.items()):
            return row
    return None
