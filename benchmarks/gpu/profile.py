"""What the host waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def host_waits(step: Callable[[], Any]) -> int:
    """Synchronising runtime calls in three steps."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        for _ in range(3):
            step()
    waiting = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    # The profiler itself waits for the device once, at its end.
    return max(0, sum(e.count for e in trace.key_averages() if e.key in waiting) - 1)
