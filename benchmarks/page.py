"""The little Markdown that our tables are written in, as HTML."""

from __future__ import annotations

import re
from html import escape


def html(text: str) -> str:
    """Paragraphs, and tables of pipes."""
    return "\n".join(_block(block) for block in re.split(r"\n\s*\n", text.strip()))


def _block(block: str) -> str:
    lines = block.splitlines()
    if not lines[0].startswith("|"):
        return f"<p class='case'>{_inline(' '.join(lines))}</p>"
    head, _, *body = ([cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines)
    rows = _row(head, "th") + "".join(_row(cells, "td") for cells in body)
    return f'<div class="panel"><table>{rows}</table></div>'


def _row(cells: list[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{_inline(cell)}</{tag}>' for cell in cells)}</tr>"


def _inline(text: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)
