"""What every measurement goes through: measured together, handed to pytest-benchmark, written down.

pytest-benchmark times one case after the other, minutes apart, and a shared machine's speed drifts
in minutes. So all contenders of a case are measured first, round by round (A B C ... A B C ...), and
each test then plays its contender's times back to pytest-benchmark by a clock that moves only when
told. Its statistics, its JSON and its comparisons are of times that were really taken; only the order
in which they were taken is ours. `MEASURED` puts that clock in place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pytest
import torch

from benchmarks.roofline import Ceilings, Floor, measure_ceilings
from benchmarks.shapes import Scale
from benchmarks.workers import Measured

Name = TypeVar("Name")
_ROUND, _MOST_CALLS = 0.02, 32  # seconds of one contender in a round, and calls in them
_now = 0.0


def replayed() -> float:
    """The clock."""
    return _now


MEASURED = pytest.mark.benchmark(timer=replayed)


def give(benchmark: Any, seconds: list[float]) -> None:
    """Play times back to pytest-benchmark."""
    left = iter(seconds)

    def pass_time() -> None:
        global _now
        _now += next(left)

    benchmark.pedantic(pass_time, rounds=len(seconds))


def interleaved(
    calls: Mapping[Name, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Seconds of every call in this process, round by round, after one to warm up.

    A short call is made several times in each round: of single ones not even the median repeats.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for round_ in range(1 + rounds):
        for name, call in calls.items():
            spent = 0.0
            for _ in range(_MOST_CALLS):
                start = clock()
                call()
                took = clock() - start
                spent += took
                if round_:
                    seconds[name].append(took)
                if spent > _ROUND:
                    break
    return seconds


class Suite:
    """One run: its scale, the ceilings of the machine, and what is already measured.

    Parameters
    ----------
    scale : Scale
    peers_python : str
        The python of the peers' environment.
    small : bool
        Toy ceilings, for the tests.
    """

    def __init__(self, scale: Scale, peers_python: str, *, small: bool = False) -> None:
        self.scale, self.peers_python = scale, peers_python
        self.ceilings: Ceilings = measure_ceilings(torch.device("cpu"), small=small)
        self.absent: list[dict[str, Any]] = []  # rows of those that could not be measured
        self._measured: dict[Any, Any] = {}

    def once(self, key: Any, measure: Callable[[], Any]) -> Any:
        """What `measure` returned the first time it was asked for this key."""
        if key not in self._measured:
            self._measured[key] = measure()
        return self._measured[key]

    def report(
        self,
        benchmark: Any,
        subject: str,
        row: Mapping[str, Any],
        measured: Measured,
        floor: Floor | None = None,
    ) -> None:
        """One contender's figures into its case: times, floor, and a row for the report.

        A peer that could not be measured is written down as absent and its test skipped, saying why.
        Were it one of ours, the test fails.
        """
        row = dict(row) | {"version": measured.version} | measured.answers
        if floor is not None:
            row["floor"] = floor.seconds(self.ceilings)
        if measured.absent:
            self.absent.append({"subject": subject, **row, "absent": measured.absent})
            reason = f"{row['contender']} is absent: {measured.absent}"
            if row["contender"].startswith("trustbench"):
                pytest.fail(reason)
            pytest.skip(reason)
        benchmark.group = f"{subject}: {row['case']}"
        benchmark.extra_info[subject] = row
        give(benchmark, measured.seconds)
