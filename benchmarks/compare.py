"""One run against an earlier one: which ratios to trustbench moved."""

from __future__ import annotations

from benchmarks.quality import best
from benchmarks.record import Row, by_case, ours
from benchmarks.tables import markdown
from trustbench.errors import InputError
from trustbench.report import Table

TOLERANCE = 1.25


def ratios(rows: Table) -> dict[str, float]:
    """{subject, case and contender: its seconds over trustbench's; of quality also its fvu}."""
    found = {}
    for subject in rows.unique("subject"):
        cases = by_case(row for row in rows.where(subject=subject) if "case" in row)
        for case, group in cases.items():
            for row in best(group) if subject == "quality" else group:
                mine = _ours(row, group)
                if mine is row or mine is None or "seconds" not in row:
                    continue
                parts = (subject, case, row["contender"], row.get("matmul"))
                name = ": ".join(filter(None, parts))
                found[name] = row["seconds"] / mine["seconds"]
                if "fvu" in row:
                    found[f"{name}: fvu"] = row["fvu"][-1] / mine["fvu"][-1]
    return found


def _ours(row: Row, group: list[Row]) -> Row | None:
    if "fvu" in row:
        return ours(best(group))
    return ours(group, matmul=row.get("matmul"))


def table(before: Table, after: Table, commit: str) -> tuple[str, list[str]]:
    """Markdown, and the ratios that moved by more than a quarter; commit: of the run before.

    Raises
    ------
    InputError
        When the two runs have no ratio in common.
    """
    old, new = ratios(before), ratios(after)
    both = [name for name in new if name in old]
    if not both:
        raise InputError(
            "compare: no ratio in common: are these runs of the same scale and subjects?"
        )
    change = {name: new[name] / old[name] for name in both}
    moved = [n for n, times in change.items() if max(times, 1 / times) > TOLERANCE]
    body = [
        [name, f"{old[name]:.2f}", f"{new[name]:.2f}", f"{change[name] - 1:+.0%}", mark]
        for name in both
        for mark in ["moved" if name in moved else ""]
    ]
    head = ("ratio to trustbench", f"then, {commit}", "now", "change", "")
    gone = sorted(set(old) - set(new))
    lines = [markdown(head, body), "", f"{len(moved)} of {len(both)} ratios moved by more than 25 %."]
    if gone:
        lines.append(f"Not in this run: {len(gone)}, the first {gone[0]}.")
    return "\n".join(lines), moved
