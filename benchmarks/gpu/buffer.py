"""The streaming buffer on a GPU: right, within its share of a step, and never waited for.

compute-sanitizer python -m benchmarks.gpu.buffer    its checks alone, under a sanitizer
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.clock import Clock, floor
from benchmarks.gpu.profile import host_waits
from benchmarks.roofline import Ceilings
from trustbench.buffer import ActivationBuffer, Spill
from trustbench.ops.spec import Shape

_KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)


def checks(device: torch.device) -> dict[str, str]:
    """Batches on the device against the CPU's, bit for bit: every storage, order and tier."""
    outcomes = {}
    for kind in _KINDS:
        for one_order in (True, False):
            for tiers in ("none", "host", "disk"):
                name = f"buffer, {str(kind).removeprefix('torch.')}, {tiers} tier"
                name += "" if one_order else ", separate orders"
                outcomes[name] = _check(kind, one_order, tiers, device)
    return outcomes


def _check(kind: torch.dtype, one_order: bool, tiers: str, device: torch.device) -> str:
    with tempfile.TemporaryDirectory(prefix="trustbench-") as directory:
        batches: list[list[dict[str, Tensor]]] = []
        for place in (torch.device("cpu"), device):
            spill = Spill(
                host_bytes=2**25 if tiers == "host" else 0,
                disk_bytes=2**25 if tiers == "disk" else 0,
                directory=f"{directory}/{len(batches)}" if tiers == "disk" else "",
            )
            widths = {"even": 1024, "odd": 37, "one": 1}
            buffer = ActivationBuffer(
                widths, 2048, dtype=kind, seed=3, device=place, one_order=one_order, spill=spill
            )
            with buffer:
                batches.append(list(_stream(buffer, widths, kind, place)))
        for mine, theirs in zip(*batches, strict=True):
            for name, rows in mine.items():
                if not torch.equal(rows, theirs[name]):
                    return f"WRONG: {name} differs"
    return "ok"


def _stream(
    buffer: ActivationBuffer, widths: dict[str, int], kind: torch.dtype, place: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Batches, on the host, of numbers drawn anew for every put."""
    draws = torch.Generator().manual_seed(0)
    source = torch.float16 if kind == torch.float16 else torch.float32
    second = torch.cuda.Stream(place) if place.type == "cuda" else None
    for _ in range(40):
        while buffer.space >= 300:
            acts = {n: torch.randn(300, d, generator=draws).to(source) for n, d in widths.items()}
            on_device = {name: rows.to(place) for name, rows in acts.items()}
            if second is None:
                buffer.put(on_device)
                continue
            second.wait_stream(torch.cuda.current_stream(place))
            with torch.cuda.stream(second):  # beside the takes, as the model's forward is
                buffer.put(on_device)
        yield {name: rows.cpu() for name, rows in buffer.take(256).items()}


def run(shape: Shape, clock: Clock, ceilings: Ceilings, layers: int) -> dict[str, Any]:
    """Seconds of a put and a take of a step's tokens, without tiers and with one of host memory."""
    device, N, d = clock.device, shape.N, shape.d
    widths = {f"layer {i}": d for i in range(layers)}
    acts = {name: torch.randn(N, d, device=device).bfloat16() for name in widths}
    moved = 4.0 * N * d * 2 * layers  # put and taken, read and written
    result: dict[str, Any] = {"floor": floor(ceilings, moved)}
    segment = N * d * 2 * layers
    for name, kind, spill in (
        ("bf16", torch.bfloat16, Spill()),
        ("MXFP8", torch.float8_e4m3fn, Spill()),
        ("bf16, host tier", torch.bfloat16, Spill(host_bytes=4 * segment + 2**22)),
    ):
        with ActivationBuffer(widths, 8 * N, dtype=kind, device=device, spill=spill) as buffer:

            def turn(buffer: ActivationBuffer = buffer) -> None:
                while buffer.space >= N:
                    buffer.put(acts)
                buffer.take(N)

            turn()
            result[name] = clock.seconds(turn, flush=False)
            if clock.on_gpu:
                result[f"host waits, {name}"] = host_waits(turn)
    result["pinned copy, bytes a second each way"] = _both_ways(clock, segment)
    # Of a turn's tokens, as many go down and come back as are taken.
    result["spilled, bytes a second each way"] = segment / result["bf16, host tier"]
    return result


def _both_ways(clock: Clock, size: int) -> float:
    """Bytes a second from and to page-locked memory at once, each way."""
    device = clock.device
    pinned = clock.on_gpu
    down, up = (torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(2))
    here, there = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    streams = [torch.cuda.Stream(device) for _ in range(2)] if pinned else []

    def copies() -> None:
        if not streams:
            down.copy_(here)
            there.copy_(up)
            return
        main = torch.cuda.current_stream(device)
        for stream, to, source in zip(streams, (down, there), (here, up), strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                to.copy_(source, non_blocking=True)
        for stream in streams:
            main.wait_stream(stream)

    return size / clock.seconds(copies, flush=False)


def sanitized() -> str:
    """The outcome of the checks under compute-sanitizer, where the toolkit has it."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if tool is None:
        return "absent: no compute-sanitizer on this machine"
    command = [tool, "--error-exitcode=9", sys.executable, "-m", "benchmarks.gpu.buffer"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=180)
    return "ok" if run.returncode == 0 else f"WRONG: {(run.stdout + run.stderr)[-300:]}"


if __name__ == "__main__":
    found = checks(torch.device("cuda"))
    print("\n".join(f"{name}: {outcome}" for name, outcome in found.items()))
    sys.exit(any(outcome != "ok" for outcome in found.values()))
