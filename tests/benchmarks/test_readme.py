"""The README's figures are what the recorded run gives."""

from __future__ import annotations

import pytest

from benchmarks import readme
from benchmarks.record import Record
from tests.benchmarks import rows


def test_the_readme_says_what_was_recorded():
    text = readme.README.read_text()
    assert text == readme.replaced(text, Record.load(readme.RECORD)), (
        "the README's figures are not those of results/cpu.json: python -m benchmarks.readme"
    )


def test_the_record_is_of_all_subjects():
    record = Record.load(readme.RECORD)
    for subject in ("step", "quality", "ops", "buffer", "attention", "capture"):
        assert record.rows(subject), subject


def test_the_figures_come_from_the_record():
    found = readme.figures(Record(rows.record()))
    assert "| **trustbench 1.0** | **100** | **50** | **100 / 100** |" in found
    assert "| overcomplete | absent |  |  |" in found
    assert "that is 8.0 × sparsify as they run by default (fp32), and 4.0 × sparsify" in found
    assert "at 80% of memcpy's rate" in found and "20 × SAELens's" in found
    assert "is 0.50 × that of torch's SDPA" in found and "5.00 × (nnsight)" in found


def test_only_what_stands_between_the_markers_changes():
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
    once = readme.replaced(text, Record(rows.record()))
    assert once.startswith("before\n") and once.endswith(f"{readme.END}\nafter\n")
    assert "old" not in once and readme.replaced(once, Record(rows.record())) == once


@pytest.mark.parametrize("subject", ["quality", "buffer", "attention", "capture"])
def test_a_subject_that_was_not_measured_is_left_out(subject):
    part = rows.record()
    part["benchmarks"] = [b for b in part["benchmarks"] if subject not in b["extra_info"]]
    part["absent"] = [row for row in part["absent"] if row["subject"] != subject]
    assert readme.figures(Record(part))
