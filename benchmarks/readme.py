"""The README's figures, from the recorded run.

    python -m benchmarks.readme

They stand between two markers, and a test holds that they are what the record gives.
`trustbench bench --full --readme` measures, records and does this.
"""

from __future__ import annotations

import textwrap

from benchmarks.buffer import of_memcpy
from benchmarks.machine import HERE, RESULTS
from benchmarks.record import Record, Row, by_case, ours
from benchmarks.tables import markdown
from trustbench import files

README = HERE.parent / "README.md"
RECORD = RESULTS / "cpu.json"
BEGIN = "<!-- figures: `python -m benchmarks.readme` writes them from benchmarks/results/cpu.json -->"
PEERS = ("sparsify", "SAELens", "dictionary_learning", "overcomplete")
_ROWS = {"matmul only": "the encoder's matmul alone, by torch"}
END = "<!-- end of the figures -->"


def figures(record: Record) -> str:
    """What stands between the markers."""
    parts = [_step(record), _quality(record), _buffer(record), _attention(record)]
    return "\n\n".join(part for part in parts if part)


def replaced(text: str, record: Record) -> str:
    """The README with the figures of a record."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n\n{figures(record)}\n\n{END}{rest.split(END)[1]}"


def write() -> None:
    """Rewrite the README from the record."""
    files.atomic_write_text(README, replaced(README.read_text(), Record.load(RECORD)))


def _first(record: Record, subject: str) -> list[Row]:
    """The rows of a subject's first shape: the one the README speaks of."""
    return next(iter(by_case(record.rows(subject)).values()), [])


def _step(record: Record) -> str:
    rows = _first(record, "step")
    if not rows:
        return ""
    m = record.machine
    of = {kind: {r["contender"]: r for r in rows if r["matmul"] == kind} for kind in ("fp32", "bf16")}
    body = []
    for name, fp32 in of["fp32"].items():
        pair = (fp32, of["bf16"][name])
        if any("absent" in row for row in pair):
            body.append([name, "absent", "", ""])
            continue
        plain = fp32["version"] == m["torch"]  # torch's own functions
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
        f" {m['threads']} threads of an {m['cpu']}"
        f" ({m['isa']}), torch {m['torch']}, {m['date']}, commit {m['commit']}"
        " (`benchmarks/results/cpu.md` has all figures; made by"
        f" `trustbench bench --{m['scale']}`):"
    )
    after = (
        f"With bf16 matmuls that is {against('fp32', 'bf16')} as they run by default (fp32), and"
        f" {against('bf16', 'bf16')} under bf16 autocast. In fp32 throughout it is"
        f" {against('fp32', 'fp32')}."
    )
    return f"{_prose(before)}\n\n{markdown(head, body)}\n\n{_prose(after)}"


def _quality(record: Record) -> str:
    rows = _first(record, "quality")
    mine = ours(rows)
    if mine is None:
        return ""
    body = []
    for row in rows:
        if "absent" in row:
            body.append([row["contender"], "absent", "", "", ""])
            continue
        end = row["curve"][-1]
        cells = [row["contender"], f"{end['fvu']:.4f}", f"{end['never_active']:.1%}"]
        body.append([*cells, f"{row['rate']:g}", f"{end['seconds']:.1f}"])
    tokens = mine["curve"][-1]["tokens"]
    text = (
        f"Speed is not bought with quality: one layer of the demo model, {tokens:,} tokens, the same"
        f" k, each trainer's own AuxK and the best of {len(mine['rates'])} learning rates; fvu and"
        " features never active on held-out text (the suite fails where ours is worse by 1 %):"
    )
    head = ("", "fvu", "never active", "learning rate", "seconds of training")
    return f"{_prose(text)}\n\n{markdown(head, body)}"


def _buffer(record: Record) -> str:
    rows = _first(record, "buffer")
    mine = ours(rows)
    if mine is None:
        return ""
    present = [row for row in rows if "absent" not in row]
    peers = [r for r in present if r["contender"] in ("SAELens", "dictionary_learning")]
    faster = _listed([f"{r['seconds'] / mine['seconds']:.0f} × {r['contender']}'s" for r in peers])
    pairs = _listed([f"{r['mixing']['same_document']:.1%} in {r['contender']}'s" for r in peers])
    text = (
        f"The shuffling buffer moves activations at {of_memcpy(mine, present):.0%} of memcpy's rate"
        f" ({mine['case']}; bf16, put and take together)"
    )
    if peers:
        text += (
            f", {faster}. Of the pairs in a batch {mine['mixing']['same_document']:.1%} are of one"
            f" document, {pairs}, with pools of the same size"
        )
    return _prose(f"{text}.")


def _attention(record: Record) -> str:
    parts = []
    for case, rows in by_case(record.rows("attention")).items():
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
    rows = _first(record, "capture")
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
    return textwrap.fill(text, 150, break_long_words=False, break_on_hyphens=False)


def _listed(items: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


if __name__ == "__main__":
    write()
