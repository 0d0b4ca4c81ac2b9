"""A run as Markdown and as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import charts, scaling, tables
from benchmarks.record import Row, where
from benchmarks.tables import Block
from trustbench import files
from trustbench.report import Table, page, style

# Of every subject, in the order of the report: title, what it is, what its figure shows in words.
SUBJECTS = {
    "step": (
        "One training step",
        "One full Adam step with unit-norm decoder; every peer in its own trainer's order of"
        " operations, in fp32 and under bf16 autocast. Medians of interleaved rounds.",
        "Milliseconds of one training step by trustbench and every peer, with the floor",
    ),
    "quality": (
        "Quality beside speed",
        "Training on one layer of the demo model: the same activations in the same order, the same"
        " k and width, each trainer's own AuxK, the best of a small grid of learning rates.",
        "fvu and dead features of trustbench and every peer, against tokens and against seconds",
    ),
    "ops": (
        "Each op",
        "Every op against what one would write in PyTorch: in fp32 on a CPU, in bf16 on a GPU. Above"
        " 100 % of the floor a kernel is faster than torch's own matmul, or works from cache.",
        "Milliseconds of every op and of PyTorch's functions in its place, with the floor",
    ),
    "buffer": (
        "The shuffling buffer",
        "Putting tokens of all layers in, and taking a batch out. memcpy copies the same bytes"
        " twice, in order. With a tier below the pool, every token goes down and comes back once.",
        "Milliseconds a batch of trustbench's buffer, its peers' and memcpy",
    ),
    "attention": (
        "Attention with its statistics",
        "One row, causal: log-sum-exp, entropy, look-back, largest probability, and the mass on"
        " first, own, previous and last positions. SDPA and flex_attention give the output alone.",
        "Milliseconds of attention with statistics, and of torch's attention without",
    ),
    "capture": (
        "Attention of a whole model",
        "A forward that also gives every head's entropy and largest probability (trustbench gives"
        " all its statistics); the peers keep the patterns and reduce them.",
        "Milliseconds of a model's forward with the attention of every head",
    ),
    "scaling": (
        "Scaling",
        "What a training step costs against each of its sizes, where memory ends, and what several"
        " processes on one machine reach.",
        "Cost of a training step against tokens, width, features, k and layers",
    ),
    "checks": ("Checks on the device", "The tests of ops and buffer, run there.", ""),
    "tune": ("Tuned", "Every shipped configuration of the kernels that have several.", ""),
    "train": (
        "Whole runs",
        "`tb.train` on all layers of a model of Pythia-410M's shape, by its own metrics; and the demo"
        " model's fvu at equal steps on the CPU in fp32 and on the device.",
        "",
    ),
}
_DRAWN: dict[str, Callable[[Sequence[Row]], Any]] = {
    name: charts.times for name in ("step", "ops", "buffer", "attention", "capture")
} | {"quality": charts.quality, "scaling": charts.scaling}
_NOTE = (
    "Figures are ratios within one run; absolute times differ from machine to machine. The floor is"
    " the larger of the bytes that must be moved over the measured copy bandwidth and the FLOPs over"
    " the measured matmul rate."
)


def markdown(rows: Table) -> str:
    """Every subject that has rows: its heading, what it is, its tables."""
    parts = []
    for name, _, blocks in _sections(rows):
        title, about, _ = SUBJECTS[name]
        said = [b if isinstance(b, str) else tables.markdown(*b) for b in blocks]
        parts.append("\n\n".join([f"## {title}", about, *said]))
    return "\n\n".join(parts) + "\n"


def text(rows: Table, about: Mapping[str, Any]) -> str:
    """The same under a heading that says where it was measured."""
    return f"# Benchmarks\n\n{where(about)}\n\n{markdown(rows)}"


def write(rows: Table, about: Mapping[str, Any], stem: Path) -> None:
    """<stem>.jsonl, <stem>.about.json, <stem>.md and <stem>.html."""
    rows.write(stem.with_suffix(".jsonl"), about)
    files.atomic_write_text(stem.with_suffix(".md"), text(rows, about))
    blocks: list[Any] = [page.Prose(_NOTE)]
    for name, found, parts in _sections(rows):
        title, said, alt = SUBJECTS[name]
        blocks.append(page.Heading(title, said))
        if name in _DRAWN and any(row.get("seconds") for row in found):
            blocks.append(page.Figure(style.svg(_DRAWN[name], found), alt))
        blocks += [page.Prose(b) if isinstance(b, str) else page.TextTable(*b) for b in parts]
    html = page.page("trustbench bench", blocks, where(about))
    files.atomic_write_text(stem.with_suffix(".html"), html)


def _sections(rows: Table) -> Iterator[tuple[str, list[Row], list[Block]]]:
    for name in SUBJECTS:
        if found := list(rows.where(subject=name)):
            blocks = scaling.blocks(found) if name == "scaling" else tables.of_cases(found)
            yield name, found, blocks
