"""Batches depend on the seed alone: not on the device, for every storage, order and tier."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from trustbench.buffer import ActivationBuffer, Spill

WIDTHS = {"even": 64, "odd": 37, "one": 1}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def batches(buffer: ActivationBuffer, dtype: torch.dtype, device: str) -> Iterator[dict[str, Tensor]]:
    """On the host, of numbers drawn anew for every put."""
    draws = torch.Generator().manual_seed(0)
    source = torch.float16 if dtype == torch.float16 else torch.float32
    second = torch.cuda.Stream(device) if device == "cuda" else None
    for _ in range(16):
        while buffer.space >= 150:
            acts = {n: torch.randn(150, d, generator=draws).to(source) for n, d in WIDTHS.items()}
            on_device = {name: rows.to(device) for name, rows in acts.items()}
            if second is None:
                buffer.put(on_device)
                continue
            second.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(second):  # beside the takes, as the model's forward is
                buffer.put(on_device)
        yield {name: rows.cpu() for name, rows in buffer.take(128).items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tiers", ["none", "host", "disk"])
@pytest.mark.parametrize("one_order", [True, False], ids=["one order", "separate orders"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_the_same_batches_on_every_device(dtype, one_order, tiers, device, tmp_path):
    found = []
    for place in ("cpu", device):
        spill = Spill(
            host_bytes=2**22 if tiers == "host" else 0,
            disk_bytes=2**22 if tiers == "disk" else 0,
            directory=str(tmp_path / f"{len(found)}") if tiers == "disk" else "",
        )
        options = {"dtype": dtype, "seed": 3, "one_order": one_order, "spill": spill}
        with ActivationBuffer(WIDTHS, 1024, device=place, **options) as buffer:
            found.append(list(batches(buffer, dtype, place)))
    for mine, theirs in zip(*found, strict=True):
        for name, rows in mine.items():
            assert torch.isfinite(rows).all() and torch.equal(rows, theirs[name])
