"""One run against an earlier one: which ratios to trustbench moved."""

from __future__ import annotations

from benchmarks.record import Record, by_case, ours
from benchmarks.subjects import subjects
from benchmarks.tables import markdown
from trustbench.errors import InputError

TOLERANCE = 1.25


def ratios(record: Record) -> dict[str, float]:
    """{subject, case and contender: its seconds over trustbench's; of quality also its fvu}."""
    found = {}
    for subject in subjects():
        rows = [row for row in record.rows(subject.name) if "case" in row]
        for case, group in by_case(rows).items():
            for row in group:
                matmul = row.get("matmul")
                mine = ours(group, matmul=matmul)
                if "absent" in row or row is mine or mine is None:
                    continue
                name = ": ".join(filter(None, (subject.name, case, row["contender"], matmul)))
                found[name] = row["seconds"] / mine["seconds"]
                if "curve" in row:
                    found[f"{name}: fvu"] = row["curve"][-1]["fvu"] / mine["curve"][-1]["fvu"]
    return found


def table(before: Record, after: Record) -> tuple[str, list[str]]:
    """Markdown, and the ratios that moved by more than a quarter.

    Raises
    ------
    InputError
        When the two runs have no ratio in common.
    """
    old, new = ratios(before), ratios(after)
    both = [name for name in new if name in old]
    if not both:
        raise InputError(
            f"compare: no ratio in common, the other run was `{before.machine['scale']}` and this"
            f" one is `{after.machine['scale']}`"
        )
    change = {name: new[name] / old[name] for name in both}
    moved = [n for n, times in change.items() if max(times, 1 / times) > TOLERANCE]
    body = [
        [name, f"{old[name]:.2f}", f"{new[name]:.2f}", f"{change[name] - 1:+.0%}", mark]
        for name in both
        for mark in ["moved" if name in moved else ""]
    ]
    head = ("ratio to trustbench", f"then, {before.machine['commit']}", "now", "change", "")
    gone = sorted(set(old) - set(new))
    lines = [markdown(head, body), "", f"{len(moved)} of {len(both)} ratios moved by more than 25 %."]
    if gone:
        lines.append(f"Not in this run: {len(gone)}, the first {gone[0]}.")
    return "\n".join(lines), moved
