"""Rows as tables of text: one set of columns, of which every subject shows those that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.record import Row, by_case, ours

# A paragraph, or a table's heading and body.
Block = str | tuple[Sequence[str], Sequence[Sequence[str]]]


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table; every column after the first holds figures."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def of_cases(rows: Iterable[Row]) -> list[Block]:
    """A table a case: its columns are those of which any row has a figure."""
    return [block for case, found in by_case(rows).items() for block in (case, _table(found))]


def of_memcpy(row: Row, rows: Sequence[Row]) -> str:
    """The rate of a buffer, of that of copying the same bytes twice."""
    copy = next((r for r in rows if r["contender"] == "memcpy" and "seconds" in r), None)
    return f"{copy['seconds'] / row['seconds']:.0%}" if copy else ""


def milliseconds(seconds: float) -> str:
    """With three figures that mean something."""
    taken = 1e3 * seconds
    return f"{taken:,.0f}" if taken >= 100 else f"{taken:.1f}" if taken >= 10 else f"{taken:.2f}"


def _plain(name: str, form: str) -> Callable[[Row, Sequence[Row]], str]:
    return lambda row, _: format(row[name], form)


def _last(name: str, form: str) -> Callable[[Row, Sequence[Row]], str]:
    return lambda row, _: format(row[name][-1], form)


def _times(row: Row, rows: Sequence[Row], **like: str) -> str:
    mine = ours(rows, **like)
    return f"{row['seconds'] / mine['seconds']:.2f} ×" if mine else ""


def _fvu(row: Row, rows: Sequence[Row]) -> str:
    """In bold at a contender's best rate."""
    own = [r["fvu"][-1] for r in rows if r["contender"] == row["contender"] and "fvu" in r]
    mark = "**" if row["fvu"][-1] == min(own) else ""
    return f"{mark}{row['fvu'][-1]:.4f}{mark}"


# Heading, what a row needs for it, and the cell of a row among those of its case.
_COLUMNS: tuple[tuple[str, tuple[str, ...], Callable[[Row, Sequence[Row]], str]], ...] = (
    ("version", ("version",), lambda row, _: row["version"] or ""),
    ("matmul", ("matmul",), _plain("matmul", "")),
    ("learning rate", ("rate",), _plain("rate", "g")),
    ("fvu", ("fvu",), _fvu),
    ("never active", ("never_active",), _last("never_active", ".1%")),
    ("seconds of training", ("trained",), _last("trained", ".1f")),
    ("ms", ("seconds",), lambda row, _: milliseconds(row["seconds"])),
    ("of the floor", ("seconds", "floor"), lambda row, _: f"{row['floor'] / row['seconds']:.0%}"),
    ("trustbench is", ("seconds",), lambda row, rows: (
        "" if row.keys() & {"matmul", "rate"} else _times(row, rows))),
    ("trustbench fp32 is", ("matmul", "seconds"), lambda r, rows: _times(r, rows, matmul="fp32")),
    ("trustbench bf16 is", ("matmul", "seconds"), lambda r, rows: _times(r, rows, matmul="bf16")),
    ("peak memory, MB", ("peak_mb",), _plain("peak_mb", ",.0f")),
    ("of it in the step, MB", ("step_mb",), _plain("step_mb", ",.0f")),
    ("host waits", ("host_waits",), _plain("host_waits", "")),
    ("of memcpy's rate", ("seconds",), of_memcpy),
    ("pairs of one document in a batch", ("same_document",), _plain("same_document", ".2%")),
    ("median distance of neighbours, tokens", ("distance",), _plain("distance", ",.0f")),
    ("spread of a token's delay, batches", ("spread",), _plain("spread", ".1f")),
    ("tokens/s", ("tokens_per_second",), _plain("tokens_per_second", ",.0f")),
    ("predicted memory, MB", ("predicted_mb",), _plain("predicted_mb", ",.0f")),
    ("L0", ("l0",), _plain("l0", ".0f")),
    ("worst fvu", ("worst_fvu",), _plain("worst_fvu", ".4f")),
    ("every shipped configuration, ms", ("configurations",), lambda row, _: ", ".join(
        milliseconds(s) for s in row["configurations"])),
    ("outcome", ("outcome",), _plain("outcome", "")),
)  # fmt: skip


def _table(rows: list[Row]) -> Block:
    head, columns = [""], []
    for heading, needs, cell in _COLUMNS:
        cells = [cell(row, rows) if row.keys() >= set(needs) else "" for row in rows]
        if any(cells):
            head.append(heading)
            columns.append(cells)
    if len(head) == 1:
        head.append("")
        columns.append(["" for _ in rows])
    body = [[row["contender"], *cells] for row, *cells in zip(rows, *columns, strict=True)]
    for cells, row in zip(body, rows, strict=True):
        if "absent" in row:
            cells[1:] = [f"absent: {row['absent']}", *[""] * (len(cells) - 2)]
    return head, body
