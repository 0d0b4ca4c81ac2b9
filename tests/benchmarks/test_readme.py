"""The figures of README and docs are what the recorded run gives."""

from __future__ import annotations

import pytest

from benchmarks import readme, report, suite
from benchmarks.record import RESULTS, read
from tests.benchmarks import rows


def test_pages_say_what_was_recorded():
    for page, text in readme.pages(*read(readme.RECORD)).items():
        assert page.read_text() == text, (
            f"{page}: its figures are not those of results/cpu.jsonl: python -m benchmarks.readme"
        )


def test_the_tables_beside_the_record_are_its_own():
    assert (RESULTS / "cpu.md").read_text() == report.text(*read(readme.RECORD))


def test_the_record_is_of_all_subjects():
    assert read(readme.RECORD)[0].unique("subject") == list(suite.SUBJECTS)


def test_the_figures_come_from_the_record():
    found = readme.figures(rows.record(), rows.ABOUT).replace("\n", " ")
    assert "| **trustbench 1.0** | **100** | **50** | **100 / 100** |" in found
    assert "| overcomplete | absent |  |  |" in found
    assert "that is 8.0 × sparsify as they run by default (fp32), and 4.0 × sparsify" in found
    assert "at 80% of memcpy's rate" in found and "20 × SAELens's" in found
    assert "is 0.50 × that of torch's SDPA" in found and "5.00 × (nnsight)" in found


def test_only_what_stands_between_the_markers_changes():
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
    once = readme.replaced(text, "new")
    assert once.startswith("before\n") and once.endswith(f"{readme.END}\nafter\n")
    assert "old" not in once and "\nnew\n" in once and readme.replaced(once, "new") == once


@pytest.mark.parametrize("subject", ["quality", "buffer", "attention", "capture"])
def test_a_subject_that_was_not_measured_is_left_out(subject):
    part = rows.record().where(lambda row: row["subject"] != subject)
    assert readme.figures(part, rows.ABOUT)
