"""A record as tables, as Markdown, as HTML."""

from __future__ import annotations

import re

import pytest

from benchmarks import report
from benchmarks.page import html
from benchmarks.record import Record
from benchmarks.subjects import subjects
from tests.benchmarks import rows
from trustbench.errors import DataError


@pytest.fixture
def record() -> Record:
    return Record(rows.record())


def test_rows_have_their_times_and_the_absent_their_reason(record):
    found = record.rows("step")
    assert found[0]["seconds"] == 0.1 and found[0]["rounds"] == 3
    assert [row["absent"] for row in found[-2:]] == ["not there"] * 2
    assert record.rows("nothing") == []


def test_a_subject_may_write_several_rows_at_once():
    written = rows.record()
    written["benchmarks"] = [{"extra_info": {"scaling": [{"ranks": 1}, {"ranks": 2}]}, "stats": {}}]
    assert [row["ranks"] for row in Record(written).rows("scaling")] == [1, 2]


def test_a_file_that_is_no_record_is_named(tmp_path):
    for text in ("", "{}", "[1]"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(DataError, match=r"x\.json: not a record"):
            Record.load(tmp_path / "x.json")


def test_the_tables_say_time_share_of_the_floor_ratio_and_absence(record):
    text = report.tables(record)
    # sparsify in fp32: 400 ms, floor 200 ms; trustbench 100 ms in fp32 and 50 ms in bf16
    assert "| sparsify | 1.0 | fp32 | 400 | 50% | 4.00 × | 8.00 × | 100 | 10 |" in text
    assert text.count("| overcomplete | absent: not there |") == 3
    assert "| SAELens | 5% |" not in text and "| SAELens | 4% | 2.00% | 900 | 3.0 |" in text
    assert "**0.2500**" in text
    for subject in subjects():
        if record.rows(subject.name):
            assert f"## {subject.title}" in text


def test_every_row_of_a_table_has_as_many_cells(record):
    for block in re.split(r"\n\n+", report.tables(record)):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_the_page_needs_nothing_else_and_every_image_has_its_text(record, tmp_path):
    report.write(record, tmp_path, "bench")
    page = (tmp_path / "bench.html").read_text()
    assert "A Processor" in page and "$" not in re.sub(r"base64,[^\"]*", "", page)
    assert not re.search(r'(src|href)="(?!data:)', page)
    images = re.findall(r"<img[^>]*>", page)
    assert len(images) == 6 and all(re.search(r'alt="[^"]{20,}"', image) for image in images)
    assert (tmp_path / "bench.md").read_text().startswith("# Benchmarks\n\nA Processor (avx2)")


def test_markdown_tables_become_html():
    found = html("A **word**\n\n| | a |\n| --- | ---: |\n| <x> | `1` |\n")
    assert "<p class='case'>A <b>word</b></p>" in found
    assert "<tr><th></th><th>a</th></tr><tr><td>&lt;x&gt;</td><td><code>1</code></td></tr>" in found
