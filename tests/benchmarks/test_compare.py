"""One run against another: which ratios moved."""

from __future__ import annotations

import pytest

from benchmarks.compare import ratios, table
from benchmarks.record import Record
from tests.benchmarks import rows
from trustbench.errors import InputError


def test_ratios_are_to_trustbench_of_the_same_case_and_precision():
    found = ratios(Record(rows.record()))
    assert found["step: N = 8: sparsify: bf16"] == pytest.approx(4.0)
    assert found["ops: decode: N = 8: torch: embedding_bag"] == pytest.approx(3.0)
    assert found["quality: N = 8: sparsify: fvu"] == 1.0
    assert not [name for name in found if "trustbench" in name or "overcomplete" in name]


def test_a_machine_of_half_the_speed_moves_nothing():
    slow = rows.record()
    for case in slow["benchmarks"]:
        case["stats"]["median"] *= 2
    text, moved = table(Record(rows.record()), Record(slow))
    assert moved == [] and "0 of 11 ratios moved" in text


@pytest.mark.parametrize("times", [1.3, 0.7])
def test_a_ratio_that_moved_is_named(times):
    changed = rows.record()
    for case in changed["benchmarks"]:
        if case["extra_info"].get("buffer", {}).get("contender") == "SAELens":
            case["stats"]["median"] *= times
    text, moved = table(Record(rows.record()), Record(changed))
    assert moved == ["buffer: N = 8: SAELens"]
    assert f"| 20.00 | {20 * times:.2f} | {times - 1:+.0%} | moved |" in text


def test_runs_of_other_shapes_cannot_be_compared():
    other = rows.record()
    for case in other["benchmarks"]:
        for row in case["extra_info"].values():
            row["case"] = "N = 9"
    with pytest.raises(InputError, match="no ratio in common"):
        table(Record(rows.record()), Record(other))
