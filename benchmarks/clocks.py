"""The measuring core: seconds of calls in this process, by turns, on a CPU or on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, TypeVar

import torch

Name = TypeVar("Name")
Clock = Callable[[Callable[[], Any]], float]  # seconds of one call
_ROUND, _MOST_CALLS = 0.02, 32  # seconds of one contender in a round, and calls in them


def clock_of(device: torch.device) -> Clock:
    """Wall clock for the CPU; for a GPU its own events, the L2 cache emptied before every call."""
    if device.type != "cuda":
        return _wall
    flush = torch.empty(2**26, dtype=torch.int32, device=device)

    def events(call: Callable[[], Any]) -> float:
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3

    return events


def _wall(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def interleaved(
    calls: Mapping[Name, Callable[[], Any]], rounds: int, clock: Clock
) -> dict[Name, Any]:
    """Seconds of every call, round by round (A B C ... A B C ...), after one round to warm up.

    A machine whose speed drifts is then fair to all. A short call is made several times in each
    round: of single ones not even the median repeats. A call that fails has its reason, a str.
    """
    found: dict[Name, Any] = {name: [] for name in calls}
    for round_ in range(1 + rounds):
        for name, call in calls.items():
            if isinstance(found[name], list):
                try:
                    times = _one_round(call, clock)
                except Exception as error:  # the others are worth having
                    found[name] = failure(error)
                else:
                    found[name] += times if round_ else []
    return found


def _one_round(call: Callable[[], Any], clock: Clock) -> list[float]:
    times = [clock(call)]
    while sum(times) <= _ROUND and len(times) < _MOST_CALLS:
        times.append(clock(call))
    return times


def seconds(call: Callable[[], Any], clock: Clock, rounds: int = 7) -> float:
    """The median of several calls, warm."""
    clock(call)
    return median(clock(call) for _ in range(rounds))


def failure(error: BaseException) -> str:
    """Why somebody is absent, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def host_waits(step: Callable[[], Any]) -> int:
    """Calls of the CUDA runtime in three steps for which the host waits."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        for _ in range(3):
            step()
    waiting = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    # The profiler itself waits for the device once, at its end.
    return max(0, sum(e.count for e in trace.key_averages() if e.key in waiting) - 1)
