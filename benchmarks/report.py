"""A record as Markdown and as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import tempfile
from html import escape
from importlib.resources import files as resources
from pathlib import Path
from string import Template

from benchmarks.page import html
from benchmarks.record import Record
from benchmarks.subjects import HERE, subjects
from trustbench import files


def tables(record: Record) -> str:
    """Every subject that has rows: its heading, what it is, its table."""
    parts = []
    for subject in subjects():
        if rows := record.rows(subject.name):
            parts.append(f"## {subject.title}\n\n{subject.about}\n\n{subject.load().table(rows)}\n")
    return "\n".join(parts)


def write(record: Record, folder: Path, name: str) -> None:
    """<name>.md and <name>.html."""
    text = f"# Benchmarks\n\n{record.about()}\n\n{tables(record)}"
    files.atomic_write_text(folder / f"{name}.md", text)
    sections = []
    with tempfile.TemporaryDirectory() as drawings:
        for subject in subjects():
            if not (rows := record.rows(subject.name)):
                continue
            module, path = subject.load(), Path(drawings) / f"{subject.name}.svg"
            drawing = ""
            if any("absent" not in row for row in rows):
                module.figure(rows, path)
                drawing = f'<div class="panel">{_image(path, subject.alt)}</div>'
            sections.append(
                f"<h2>{escape(subject.title)}</h2><p class='note'>{escape(subject.about)}</p>"
                f"{drawing}{html(module.table(rows))}"
            )
    page = Template((HERE / "report.html").read_text()).substitute(
        style=(resources("trustbench.evals") / "page.css").read_text("utf-8"),
        about=escape(record.about()),
        sections="\n".join(sections),
    )
    files.atomic_write_text(folder / f"{name}.html", page)


def _image(path: Path, alt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'
