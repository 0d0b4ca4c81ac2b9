"""Pages: one balanced file, everything escaped, shades as they should be."""

from __future__ import annotations

import re

import pytest

from tests.report.markup import assert_whole, without_drawings
from trustbench.report import Table, style
from trustbench.report.page import (
    Card,
    Cards,
    Column,
    Facts,
    Figure,
    Heading,
    HeatTable,
    Panels,
    Passage,
    Prose,
    TextTable,
    page,
)

EVIL = '<script>alert("&")</script>'
TABLE = Table(
    {"layer": f"model.layers.{i}", "head": i, "fvu": fvu, "l0": 32.0, EVIL: EVIL}
    for i, fvu in enumerate([0.1, None, 0.3])
)


def drawing():
    return style.svg(lambda table: style.subplots(1, 1, (3, 2))[0], TABLE)


@pytest.fixture
def whole():
    heat = HeatTable.of_columns(TABLE, "layer", [Column("fvu", "FVU", ".3f", False)])
    passage = Passage([EVIL, " king", "\n"], [0.0, 2.5, 0.5], 1)
    blocks = [
        Facts({EVIL: EVIL}),
        Heading(EVIL, EVIL),
        Prose(f"One.\n\n{EVIL}"),
        Figure(drawing(), EVIL),
        Figure(drawing(), "another"),
        heat,
        HeatTable({EVIL: heat.rows["model.layers.0"]}, [EVIL]),
        TextTable([EVIL, "n"], [[EVIL, "1"]]),
        Panels({EVIL: heat}),
        Cards(EVIL, [Card(EVIL, EVIL, [passage], 2.5, EVIL, ["</code>", "\x04"])]),
    ]
    return page(EVIL, blocks, EVIL)


def test_a_page_is_whole_and_escapes_everything(whole):
    assert_whole(whole)
    assert whole.count("alert(&quot;&amp;&quot;)") == 19 and "<script" not in whole


def test_a_page_reads_on_a_phone_and_in_the_dark(whole):
    assert 'name="viewport"' in whole and "prefers-color-scheme: dark" in whole


def test_figures_say_what_they_show(whole):
    assert whole.count('<svg role="img" aria-label="') == 2 and 'aria-label="another"' in whole


def test_shades_are_places_within_a_column():
    block = HeatTable.of_columns(
        TABLE,
        "layer",
        [Column("fvu", "FVU", ".2f", False), Column("head", "h", "d", True), Column("l0", "L0")],
    )
    assert [[c.text for c in row] for row in block.rows.values()] == [
        ["0.10", "0", "32.000"],
        ["–", "1", "32.000"],
        ["0.30", "2", "32.000"],
    ]
    shades = [[cell.shade for cell in row] for row in block.rows.values()]
    assert shades == [[1, 0, 0], [0, 0.5, 0], [0, 1, 0]]
    same = HeatTable.of_columns(TABLE, "layer", [Column("l0", "L0", "g", True)])
    assert [row[0].shade for row in same.rows.values()] == [0.5] * 3


def test_maps_shade_by_the_number_and_hint():
    rows = [("a", 0, 0.5), ("a", 1, 1.5), ("b", 1, -1.0)]
    table = Table({"layer": a, "head": h, "x": x} for a, h, x in rows)
    block = HeatTable.of_map(
        table, "layer", "head", "x", name=str.upper, hint=lambda row: f"{row['x']} <here>"
    )
    assert list(block.rows) == ["A", "B"] and block.head == ["0", "1"]
    assert [c.shade for c in block.rows["A"]] == [0.5, 1.0]
    assert [c.text for c in block.rows["B"]] == ["–", "-1.00"] and block.rows["B"][1].shade == 0
    assert 'title="0.5 &lt;here&gt;"' in block.html()


def test_passages_line_up_at_the_peak():
    html = Passage(["a", " <b>", "\n"], [0.0, 2.5, 0.5], 1).html(2.5)
    peak = (
        '<mark style="--a:1.00" title="2.50"> &lt;b&gt;</mark>'
        '<mark style="--a:0.20" title="0.50"><i>↵</i></mark>'
    )
    assert html == f"<p><span><span>a</span></span><span><span>{peak}</span></span></p>"


def test_prose_has_code_and_bold_and_nothing_else():
    html = Prose("A **word** of `<x>`.\n\n<b>no</b>").html()
    assert html == ("<p>A <b>word</b> of <code>&lt;x&gt;</code>.</p><p>&lt;b&gt;no&lt;/b&gt;</p>")
    cells = TextTable(["", "a"], [["**x**", "`1`"]]).html()
    assert '<td class="word"><b>x</b></td><td><code>1</code></td>' in cells


def test_tokens_that_do_not_print_are_shown_as_codes():
    html = Card("t", "", [], 1.0, "promotes", ["</code>", "\x04"]).html()
    assert "<code>&lt;/code&gt;</code><code>\\x04</code>" in html


def test_drawings_can_be_taken_out(whole):
    assert "svg" not in without_drawings(whole) and not re.search(r"--page", without_drawings(whole))
