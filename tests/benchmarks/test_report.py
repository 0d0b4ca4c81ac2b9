"""A record as rows in files, as tables, as Markdown, as HTML."""

from __future__ import annotations

import re

import pytest

from benchmarks import report
from benchmarks.record import read
from tests.benchmarks import rows
from trustbench.errors import DataError


def test_a_run_is_read_as_it_was_written(tmp_path):
    rows.record().write(tmp_path / "bench.jsonl", rows.ABOUT)
    assert read(tmp_path / "bench.jsonl") == (rows.record(), rows.ABOUT)


@pytest.mark.parametrize(
    ("text", "about"), [("", "{}"), ("{}\n", '{"config": {"scale": 1, "ceilings": 1}}'), ("", None)]
)
def test_a_file_that_is_no_record_is_named(text, about, tmp_path):
    (tmp_path / "x.jsonl").write_text(text)
    if about:
        (tmp_path / "x.about.json").write_text(about)
    with pytest.raises(DataError, match=r"x\.jsonl: not a record"):
        read(tmp_path / "x.jsonl")


def test_the_tables_say_time_share_of_the_floor_ratio_and_absence():
    text = report.markdown(rows.record())
    # sparsify in fp32: 400 ms, floor 200 ms; trustbench 100 ms in fp32 and 50 ms in bf16
    assert "| sparsify | 1.0 | fp32 | 400 | 50% | 4.00 × | 8.00 × | 100 | 10 |" in text
    assert text.count("| overcomplete | absent: not there |") == 3
    assert "| SAELens | 1.0 | 2,000 | 50% | 20.00 × | 4% | 2.00% | 900 | 3.0 |" in text
    assert "| **0.2500** | 20.0% | 2.0 |" in text and "| 0.5000 |" in text
    for name in rows.record().unique("subject"):
        assert f"## {report.SUBJECTS[name][0]}" in text


def test_every_row_of_a_table_has_as_many_cells():
    for block in re.split(r"\n\n+", report.markdown(rows.record())):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_the_page_needs_nothing_else_and_every_figure_has_its_text(tmp_path):
    report.write(rows.record(), rows.ABOUT, tmp_path / "bench")
    page = (tmp_path / "bench.html").read_text()
    assert "A Processor" in page and not re.search(r'(src|href)="(?!data:|#)', page)
    figures = re.findall(r"<svg[^>]*>", page)
    assert len(figures) == 6 and all(re.search(r'aria-label="[^"]{20,}"', f) for f in figures)
    assert "<b>0.2500</b>" in page
    assert (tmp_path / "bench.md").read_text().startswith("# Benchmarks\n\nA Processor (avx2)")
