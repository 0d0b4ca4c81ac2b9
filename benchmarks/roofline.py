"""The least time that work can take on a machine: its bytes and FLOPs over two measured ceilings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

import torch

_KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Ceilings(NamedTuple):
    """What no kernel on this device can beat, measured at the start of a run."""

    bytes_per_second: float  # a large copy, bytes read and bytes written together
    flops: Mapping[str, float]  # of torch's own large matmul, by the dtype of its operands


class Floor(NamedTuple):
    """What any implementation must move and compute; `dtype`: of its matmuls' operands."""

    bytes: float
    flops: float = 0.0
    dtype: str = "fp32"

    def seconds(self, ceilings: Ceilings) -> float:
        """The least time, memory and arithmetic perfectly overlapped."""
        return max(self.bytes / ceilings.bytes_per_second, self.flops / ceilings.flops[self.dtype])


def measure_ceilings(
    device: torch.device,
    seconds: Callable[[Callable[[], Any]], float] | None = None,
    *,
    small: bool = False,
) -> Ceilings:
    """Copy bandwidth and matmul rates of a device, on random data.

    Parameters
    ----------
    device : torch.device
    seconds : function
        Times a call; needed on a GPU, whose calls return before they are done. On the CPU the default
        is the median of seven, warm.
    small : bool
        Toy sizes, for rehearsals: the figures mean nothing.
    """
    clock = seconds or _median_seconds
    on_gpu = device.type == "cuda"
    # Beyond any cache; a matmul as large as a training step's.
    numbers = 2**14 if small else 2**27 if on_gpu else 2**26
    rows, inner, columns = (64,) * 3 if small else (8192,) * 3 if on_gpu else (2048, 1024, 8192)
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    copied = 8 * numbers / clock(lambda: target.copy_(source))
    flops = {}
    for name, dtype in _KINDS.items():
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(columns, inner, device=device).to(dtype)
        flops[name] = 2 * rows * inner * columns / clock(lambda a=a, b=b: a @ b.T)  # type: ignore[misc]
    return Ceilings(copied, flops)


def _median_seconds(call: Callable[[], Any]) -> float:
    call()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)
