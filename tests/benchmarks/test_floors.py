"""Floors and ceilings."""

from __future__ import annotations

import pytest
import torch

from benchmarks.clocks import clock_of
from benchmarks.floors import Floor, measure_ceilings

CEILINGS = {"copy": 10e9, "fp32": 100e9, "bf16": 400e9}


@pytest.mark.parametrize(
    ("floor", "seconds"),
    [
        (Floor(10e9), 1.0),
        (Floor(10e9, 50e9), 1.0),  # memory binds
        (Floor(10e9, 300e9), 3.0),  # arithmetic binds
        (Floor(10e9, 300e9, "bf16"), 1.0),  # and no longer, at four times the rate
        (Floor(0.0), 0.0),
    ],
)
def test_a_floor_is_the_larger_of_its_two_times(floor, seconds):
    assert floor.seconds(CEILINGS) == pytest.approx(seconds)


def test_ceilings_are_what_the_clock_says():
    calls = []

    def half_a_second(call):
        call()
        calls.append(call)
        return 0.5

    found = measure_ceilings(torch.device("cpu"), half_a_second, small=True)
    matmul = 2 * 2 * 64**3
    assert found == {"copy": 2 * 8 * 2**14, "fp32": matmul, "bf16": matmul}  # read and written
    assert len(calls) == 3


def test_ceilings_of_this_machine_are_positive():
    cpu = torch.device("cpu")
    assert min(measure_ceilings(cpu, clock_of(cpu), small=True).values()) > 0
