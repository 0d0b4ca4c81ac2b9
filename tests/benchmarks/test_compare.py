"""One run against another: which ratios moved."""

from __future__ import annotations

import pytest

from benchmarks.compare import ratios, table
from tests.benchmarks import rows
from trustbench.errors import InputError


def test_ratios_are_to_trustbench_of_the_same_case_and_precision():
    found = ratios(rows.record())
    assert found["step: N = 8: sparsify: bf16"] == pytest.approx(4.0)
    assert found["ops: decode: N = 8: torch: embedding_bag"] == pytest.approx(3.0)
    assert found["quality: N = 8: sparsify: fvu"] == 1.0
    assert not [name for name in found if "trustbench" in name or "overcomplete" in name]


def test_a_machine_of_half_the_speed_moves_nothing():
    slow = rows.changed(seconds=lambda row: 2 * row["seconds"])
    text, moved = table(rows.record(), slow, "abc1234")
    assert moved == [] and "0 of 11 ratios moved" in text


@pytest.mark.parametrize("times", [1.3, 0.7])
def test_a_ratio_that_moved_is_named(times):
    changed = rows.changed(
        seconds=lambda row: row["seconds"] * (times if row["contender"] == "SAELens" else 1)
    )
    text, moved = table(rows.record(), changed, "abc1234")
    assert moved == ["buffer: N = 8: SAELens"]
    assert f"| 20.00 | {20 * times:.2f} | {times - 1:+.0%} | moved |" in text


def test_runs_of_other_shapes_cannot_be_compared():
    with pytest.raises(InputError, match="no ratio in common"):
        table(rows.record(), rows.changed(case=lambda _: "N = 9"), "abc1234")
