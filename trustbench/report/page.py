"""The one builder of pages: blocks of results as one HTML file that needs nothing else.

    page("A title", [Facts({"layers": "6"}), Heading("Training", "A note."), Figure(svg, "a curve")])

Pages read on phones, follow the reader's light or dark setting, and load nothing. All text is
escaped; in prose, `code` and **bold** are set as such.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files as resources
from typing import Any, NamedTuple, Protocol

from trustbench.report.table import Row, Table


class Block(Protocol):
    """A part of a page."""

    def html(self) -> str: ...


def page(title: str, blocks: Sequence[Block], note: str = "") -> str:
    """The whole file.

    Parameters
    ----------
    title : str
    blocks : sequence of Block
    note : str
        Prose below the title.
    """
    style = (resources("trustbench.report") / "page.css").read_text("utf-8")
    head = f"<h1>{escape(title)}</h1>{_note(note)}"
    body = "\n".join(block.html() for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{head}\n{body}\n</main>\n</body>\n</html>\n"
    )


class Heading(NamedTuple):
    """A section's heading, and a note of prose below it."""

    text: str
    note: str = ""

    def html(self) -> str:
        return f"<h2>{escape(self.text)}</h2>{_note(self.note)}"


class Prose(NamedTuple):
    """Paragraphs of prose, separated by empty lines."""

    text: str

    def html(self) -> str:
        return "".join(f"<p>{_prose(part)}</p>" for part in re.split(r"\n\s*\n", self.text.strip()))


class Facts(NamedTuple):
    """The few numbers that a reader should leave with: {label: value}."""

    values: Mapping[str, str]

    def html(self) -> str:
        facts = (
            f'<div class="fact"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
            for label, value in self.values.items()
        )
        return f'<div class="facts">{"".join(facts)}</div>'


class Figure(NamedTuple):
    """A drawing of report.style.svg, and what it shows in words for who cannot see it."""

    svg: str
    alt: str

    def html(self) -> str:
        drawing = self.svg.replace("<svg", f'<svg role="img" aria-label="{escape(self.alt)}"', 1)
        # What two figures have in common would have the same id twice in a page.
        mark = f"f{zlib.crc32(self.alt.encode()):08x}"
        drawing = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{mark}", drawing)
        return f'<div class="panel figure">{drawing}</div>'


class Column(NamedTuple):
    """A column of a HeatTable: its name in the table, its heading, its format, which end is good."""

    name: str
    heading: str
    form: str = ".3f"
    more_is_better: bool | None = None  # None: neither, no shade


class Cell(NamedTuple):
    """A number as text, its shade in [0, 1], and what a pointer on it shows."""

    text: str
    shade: float = 0.0
    hint: str = ""


class HeatTable(NamedTuple):
    """A table of shaded numbers: {row's heading: its cells}; `head` are the columns' headings."""

    rows: Mapping[str, Sequence[Cell]]
    head: Sequence[str] = ()

    @classmethod
    def of_columns(cls, table: Table, key: str, columns: Sequence[Column]) -> HeatTable:
        """One line a row of `table`, headed by its column `key`; the better, the deeper the shade."""
        rows: dict[str, list[Cell]] = {str(name): [] for name in table[key]}
        for column in columns:
            values = table[column.name]
            known = [value for value in values if value is not None]
            for cells, value in zip(rows.values(), values, strict=True):
                shade = 0.0
                if value is not None and column.more_is_better is not None:
                    spread = max(known) - min(known)
                    place = (value - min(known)) / spread if spread > 0 else 0.5
                    shade = place if column.more_is_better else 1 - place
                cells.append(_number(value, column.form, shade))
        return cls(rows, [column.heading for column in columns])

    @classmethod
    def of_map(
        cls,
        table: Table,
        rows: str,
        columns: str,
        values: str,
        *,
        form: str = ".2f",
        name: Callable[[Any], str] = str,
        hint: Callable[[Row], str] = lambda row: "",
        shaded: bool = True,
    ) -> HeatTable:
        """Column `values` of `table` over its columns `rows` and `columns`; the shade is the number.

        `name` turns a value of `rows` into its heading, `hint` a row of the table into what a pointer
        on its cell shows.
        """
        head = table.unique(columns)
        lines: dict[str, list[Cell]] = {}
        for key in table.unique(rows):
            found = {row[columns]: row for row in table if row.get(rows) == key}
            cells = lines.setdefault(name(key), [])
            for place in head:
                row = found.get(place, {})
                value = row.get(values)
                shade = min(max(value, 0.0), 1.0) if shaded and value is not None else 0.0
                cell = _number(value, form, shade, hint(row) if value is not None else "")
                # Many columns are narrow: .53 for 0.53.
                cells.append(cell._replace(text=re.sub(r"^(-?)0\.", r"\1.", cell.text)))
        return cls(lines, [str(place) for place in head])

    def html(self) -> str:
        head = "".join(f'<th scope="col">{escape(text)}</th>' for text in self.head)
        top = f"<tr><td></td>{head}</tr>" if head else ""
        rows = (
            f'<tr><th scope="row">{escape(name)}</th>{"".join(map(self._cell, cells))}</tr>'
            for name, cells in self.rows.items()
        )
        return f'<div class="panel"><table class="heat">{top}{"".join(rows)}</table></div>'

    @staticmethod
    def _cell(cell: Cell) -> str:
        hint = f' title="{escape(cell.hint)}"' if cell.hint else ""
        shade = f' style="--shade:{cell.shade:.2f}"' if cell.shade else ""
        return f"<td{shade}{hint}>{escape(cell.text)}</td>"


class TextTable(NamedTuple):
    """A plain table of prose cells: the first `left` columns hold words, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1

    def html(self) -> str:
        head = self._row(self.head, "th")
        body = "".join(self._row(row, "td") for row in self.rows)
        return f'<div class="panel"><table class="plain">{head}{body}</table></div>'

    def _row(self, cells: Sequence[str], tag: str) -> str:
        words = (' class="word"' if i < self.left else "" for i in range(len(cells)))
        found = (f"<{tag}{w}>{_prose(c)}</{tag}>" for w, c in zip(words, cells, strict=True))
        return f"<tr>{''.join(found)}</tr>"


class Panels(NamedTuple):
    """Small blocks side by side, each under its heading: {heading: block}."""

    blocks: Mapping[str, Block]

    def html(self) -> str:
        parts = (f"<div><h3>{escape(h)}</h3>{block.html()}</div>" for h, block in self.blocks.items())
        return f'<div class="panels">{"".join(parts)}</div>'


class Passage(NamedTuple):
    """Tokens with an activation each; passages are lined up at token number `peak`."""

    tokens: Sequence[str]
    activations: Sequence[float]
    peak: int

    def html(self, largest: float) -> str:
        """What stands before the peak, and the rest: two halves; shaded relative to `largest`."""
        spans = []
        for token, activation in zip(self.tokens, self.activations, strict=True):
            text = _visible(token)
            if activation > 0:
                share = min(1.0, activation / largest)
                text = f'<mark style="--a:{share:.2f}" title="{activation:.2f}">{text}</mark>'
            spans.append(text)
        halves = "".join(spans[: self.peak]), "".join(spans[self.peak :])
        return f"<p>{''.join(f'<span><span>{half}</span></span>' for half in halves)}</p>"


class Card(NamedTuple):
    """One feature, neuron or case: title, note, passages, and tokens under a label."""

    title: str
    note: str
    passages: Sequence[Passage]
    largest: float  # activation of the deepest shade
    label: str = ""
    tokens: Sequence[str] = ()

    def html(self) -> str:
        passages = "".join(passage.html(self.largest) for passage in self.passages)
        tokens = "".join(f"<code>{_visible(token)}</code>" for token in self.tokens)
        foot = f'<div class="tokens">{escape(self.label)} {tokens}</div>' if tokens else ""
        title = f"<h3>{escape(self.title)}<small>{escape(self.note)}</small></h3>"
        return f'<div class="card">{title}{passages}{foot}</div>'


class Cards(NamedTuple):
    """Cards under a heading that folds them away."""

    title: str
    cards: Sequence[Card]

    def html(self) -> str:
        cards = "".join(card.html() for card in self.cards)
        summary = f"<summary>{escape(self.title)}</summary>"
        return f'<details open>{summary}<div class="cards">{cards}</div></details>'


def _number(value: float | None, form: str, shade: float, hint: str = "") -> Cell:
    """A number, or a dash for none."""
    if value is None:
        return Cell("–")
    return Cell(format(value, form), shade, hint)


def _note(text: str) -> str:
    return f'<p class="note">{_prose(text)}</p>' if text else ""


def _prose(text: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def _visible(token: str) -> str:
    """A token as HTML; line breaks as signs, other characters that do not print as their codes."""
    shown = ("\n" if c == "\n" else c if c.isprintable() else f"\\x{ord(c):02x}" for c in token)
    return escape("".join(shown)).replace("\n", "<i>↵</i>")
