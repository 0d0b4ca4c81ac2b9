"""The README's figures, those of docs/figures.md, and all tables, from the recorded run.

    python -m benchmarks.readme

They stand between two markers, and a test holds that they are what the record gives.
`trustbench bench --full --readme` measures, records and does this.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.cases import PEERS
from benchmarks.quality import best
from benchmarks.record import RESULTS, Row, by_case, ours, read
from benchmarks.tables import markdown, of_memcpy
from trustbench import files
from trustbench.report import Table

ROOT = RESULTS.parents[1]
RECORD = RESULTS / "cpu.jsonl"
BEGIN = (
    "<!-- figures: `python -m benchmarks.readme` writes them from benchmarks/results/cpu.jsonl -->"
)
_ROWS = {"matmul only": "the encoder's matmul alone, by torch"}
END = "<!-- end of the figures -->"


def figures(rows: Table, about: Mapping[str, Any]) -> str:
    """All that is said of a record."""
    parts = [_step(rows, about), _quality(rows), _buffer(rows), _attention(rows)]
    return "\n\n".join(part for part in parts if part)


def replaced(text: str, found: str) -> str:
    """A page with what was found between its markers."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n\n{found}\n\n{END}{rest.split(END)[1]}"


def pages(rows: Table, about: Mapping[str, Any]) -> dict[Path, str]:
    """Every page with figures, as a record has them."""
    return {page: replaced(page.read_text(), of(rows, about)) for page, of in PAGES.items()}


def write() -> None:
    """Rewrite the pages, and the tables beside the record, from the record."""
    record = read(RECORD)
    for page, text in pages(*record).items():
        files.atomic_write_text(page, text)
    files.atomic_write_text(RECORD.with_suffix(".md"), report.text(*record))


def _first(rows: Table, subject: str) -> list[Row]:
    """The rows of a subject's first shape: the one the README speaks of."""
    return next(iter(by_case(rows.where(subject=subject)).values()), [])


def _step(table: Table, about: Mapping[str, Any]) -> str:
    rows = _first(table, "step")
    if not rows:
        return ""
    torch = about["versions"]["torch"]
    of = {kind: {r["contender"]: r for r in rows if r["matmul"] == kind} for kind in ("fp32", "bf16")}
    body = []
    for name, fp32 in of["fp32"].items():
        pair = (fp32, of["bf16"][name])
        if any("absent" in row for row in pair):
            body.append([name, "absent", "", ""])
            continue
        plain = fp32["version"] == torch  # torch's own functions
        cells = [_ROWS.get(name, name) if plain else f"{name} {fp32['version']}"]
        cells += [f"{1e3 * row['seconds']:,.0f}" for row in pair]
        cells.append(" / ".join(f"{row['peak_mb']:,.0f}" for row in pair))
        body.append([f"**{cell}**" for cell in cells] if name == "trustbench" else cells)
    mine = {kind: found["trustbench"]["seconds"] for kind, found in of.items()}

    def against(theirs: str, ours_: str) -> str:
        found = [r for name, r in of[theirs].items() if name in PEERS and "absent" not in r]
        return _listed([f"{r['seconds'] / mine[ours_]:.1f} × {r['contender']}" for r in found])

    head = ("", "fp32, ms", "bf16 matmuls, ms", "peak memory, MB (fp32 / bf16)")
    before = (
        f"One full Adam training step with unit-norm decoder, {rows[0]['case']}; medians of"
        f" {rows[0]['rounds']} interleaved rounds, every process keeping the memory that it frees"
        " (as they come, peers take up to twice as long: `benchmarks/README.md`), on"
        f" {about['threads']} threads of an {about['device']} ({about['isa']}), torch {torch},"
        f" {about['date']}, commit {about['commit']} (`benchmarks/results/cpu.md` has all figures;"
        f" made by `trustbench bench --{about['config']['scale']}`):"
    )
    after = (
        f"With bf16 matmuls that is {against('fp32', 'bf16')} as they run by default (fp32), and"
        f" {against('bf16', 'bf16')} under bf16 autocast. In fp32 throughout it is"
        f" {against('fp32', 'fp32')}."
    )
    return f"{_prose(before)}\n\n{markdown(head, body)}\n\n{_prose(after)}"


def _quality(table: Table) -> str:
    rows = _first(table, "quality")
    mine = ours(rows)
    if mine is None:
        return ""
    body = []
    for row in best(rows):
        if "absent" in row:
            body.append([row["contender"], "absent", "", "", ""])
            continue
        cells = [row["contender"], f"{row['fvu'][-1]:.4f}", f"{row['never_active'][-1]:.1%}"]
        body.append([*cells, f"{row['rate']:g}", f"{row['trained'][-1]:.1f}"])
    rates = {row["rate"] for row in rows}
    text = (
        f"Speed is not bought with quality: one layer of the demo model, {mine['tokens'][-1]:,}"
        f" tokens, the same k, each trainer's own AuxK and the best of {len(rates)} learning rates;"
        " fvu and features never active on held-out text (the suite fails where ours is worse by"
        " 1 %):"
    )
    head = ("", "fvu", "never active", "learning rate", "seconds of training")
    return f"{_prose(text)}\n\n{markdown(head, body)}"


def _buffer(table: Table) -> str:
    rows = _first(table, "buffer")
    mine = ours(rows)
    if mine is None:
        return ""
    present = [row for row in rows if "absent" not in row]
    peers = [r for r in present if r["contender"] in ("SAELens", "dictionary_learning")]
    faster = _listed([f"{r['seconds'] / mine['seconds']:.0f} × {r['contender']}'s" for r in peers])
    pairs = _listed([f"{r['same_document']:.1%} in {r['contender']}'s" for r in peers])
    text = (
        f"The shuffling buffer moves activations at {of_memcpy(mine, present)} of memcpy's rate"
        f" ({mine['case']}; bf16, put and take together)"
    )
    if peers:
        text += (
            f", {faster}. Of the pairs in a batch {mine['same_document']:.1%} are of one"
            f" document, {pairs}, with pools of the same size"
        )
    return _prose(f"{text}.")


def _attention(table: Table) -> str:
    parts = []
    for case, rows in by_case(table.where(subject="attention")).items():
        of = {row["contender"]: row for row in rows if "absent" not in row}
        mine = of.get("trustbench")
        others = [
            f"{mine['seconds'] / of[name]['seconds']:.2f} × {word}"
            for name, word in (
                ("SDPA, no statistics", "that of torch's SDPA (which gives the output alone)"),
                ("eager, full matrices", "that of full matrices"),
            )
            if mine and name in of
        ]
        if others:
            parts.append(f"{_listed(others)} ({case})")
    if not parts:
        return ""
    text = f"The time of attention with its statistics is {'; '.join(parts)}."
    rows = _first(table, "capture")
    mine = ours(rows)
    present = [r for r in rows if "absent" not in r and r["contender"] != "trustbench"]
    if mine and present:
        base = [f"{r['seconds'] / mine['seconds']:.2f} × ({r['contender']})" for r in present]
        text += (
            f" For a whole model's forward with the attention of every head ({mine['case']}), where"
            f" trustbench takes 1, others take {_listed(base)}."
        )
    return _prose(text)


def _prose(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _listed(items: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


# What stands between the markers of which page.
PAGES: dict[Path, Callable[[Table, Mapping[str, Any]], str]] = {
    ROOT / "README.md": _step,
    ROOT / "docs" / "figures.md": figures,
}


if __name__ == "__main__":
    write()
