"""Timing on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.roofline import Ceilings, Floor, measure_ceilings


class Clock:
    """Medians of one device, with the L2 cache emptied before every measurement.

    Parameters
    ----------
    device : torch.device
        A CUDA device; on the CPU (a rehearsal) everything is timed once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self._flush = torch.empty(2**26 if self.on_gpu else 1, dtype=torch.int32, device=device)

    def seconds(self, function: Callable[[], Any], *, rounds: int = 21, flush: bool = True) -> float:
        """Median seconds of a call, warm."""
        if not self.on_gpu:
            started = time.perf_counter()
            function()
            return time.perf_counter() - started
        for _ in range(3):
            function()
        times = []
        for _ in range(rounds):
            if flush:
                self._flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            torch.cuda.synchronize(self.device)
            times.append(start.elapsed_time(end) / 1e3)
        return median(times)

    def ceilings(self) -> Ceilings:
        """Copy bandwidth and matmul rates of the device."""
        return measure_ceilings(self.device, self.seconds, small=not self.on_gpu)


def floor(ceilings: Ceilings, moved: float, flops: float = 0.0) -> float:
    """The least seconds for so many bytes and bf16 operations."""
    return Floor(moved, flops, "bf16").seconds(ceilings)


def milliseconds(seconds: float | str | None) -> str:
    """For a table; a word stays as it is."""
    if seconds is None:
        return "-"
    return seconds if isinstance(seconds, str) else f"{1e3 * seconds:.3f}"
