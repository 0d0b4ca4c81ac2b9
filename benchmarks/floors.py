"""The least time that work can take on a machine: its bytes and FLOPs over two measured ceilings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

_KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Floor(NamedTuple):
    """What any implementation must move and compute; `dtype`: of its matmuls' operands."""

    bytes: float
    flops: float = 0.0
    dtype: str = "fp32"

    def seconds(self, ceilings: Mapping[str, float]) -> float:
        """The least time, memory and arithmetic perfectly overlapped."""
        return max(self.bytes / ceilings["copy"], self.flops / ceilings[self.dtype])


def measure_ceilings(
    device: torch.device, seconds: Callable[[Callable[[], Any]], float], *, small: bool = False
) -> dict[str, float]:
    """What no kernel on this device can beat, on random data.

    Parameters
    ----------
    device : torch.device
    seconds : function
        Times a call.
    small : bool
        Toy sizes, for rehearsals: the figures mean nothing.

    Returns
    -------
    dict
        copy: bytes a second of a large copy, those read and those written together. fp32, bf16: FLOPs
        a second of torch's own large matmul, by the dtype of its operands.
    """
    on_gpu = device.type == "cuda"
    # Beyond any cache; a matmul as large as a training step's.
    numbers = 2**14 if small else 2**27 if on_gpu else 2**26
    rows, inner, columns = (64,) * 3 if small else (8192,) * 3 if on_gpu else (2048, 1024, 8192)
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    found = {"copy": 8 * numbers / seconds(lambda: target.copy_(source))}
    for name, dtype in _KINDS.items():
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(columns, inner, device=device).to(dtype)
        found[name] = 2 * rows * inner * columns / seconds(lambda a=a, b=b: a @ b.T)  # type: ignore[misc]
    return found
