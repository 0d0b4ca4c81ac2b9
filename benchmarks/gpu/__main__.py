"""Check every kernel, tune, time each against its floor and its peers, then train end to end.

    python -m benchmarks.gpu              on a machine with a GPU, within 8 minutes
    python -m benchmarks.gpu --rehearse   the same script in Triton's interpreter, at toy sizes

Writes benchmarks/results/gpu.json and gpu.md. Peers that are not installed are reported absent.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from typing import Any

if "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling for the CPU would take most of the time
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # where tuned choices go

import torch

from benchmarks.gpu import attention, buffer, checks, end_to_end, kernels, peers, quality, report
from benchmarks.gpu.clock import Clock
from benchmarks.machine import machine
from trustbench import ops
from trustbench.ops.spec import Shape
from trustbench.training.tune import tune

FULL = Shape(16384, 1024, 32768, 64)
CHECKED = Shape(2048, 1024, 32768, 64)
TOY = Shape(32, 16, 48, 4)


def main() -> int:
    """Returns 1 when a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="toy sizes, no GPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="stages after that are left out")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        print(
            "benchmarks.gpu: torch sees no CUDA device; --rehearse runs without one", file=sys.stderr
        )
        return 2
    device = torch.device("cpu" if options.rehearse else "cuda")
    with ops.use("triton"):
        result = _measure(device, options.rehearse, time.monotonic() + 60 * options.minutes)
    report.write(result, "gpu-rehearsal" if options.rehearse else "gpu", keep=not options.rehearse)
    fine = ("ok", "absent", "not run")
    wrong = [n for n, outcome in result["checks"].items() if not outcome.startswith(fine)]
    return 1 if wrong or result["failed"] else 0


def _measure(device: torch.device, rehearse: bool, deadline: float) -> dict[str, Any]:
    result: dict[str, Any] = {"machine": machine() | _device(device), "left out": [], "failed": {}}
    clock = Clock(device)
    shape = TOY if rehearse else FULL
    result["shape"] = shape._asdict()

    def stage(name: str, least: float, run: Any) -> Any:
        """A stage that needs so many seconds, unless they are not left."""
        if time.monotonic() + least > deadline:
            result["left out"].append(name)
            return None
        print(f"{name} ...", flush=True)
        try:
            return run()
        except Exception as error:  # the stages after it are worth having
            traceback.print_exc()
            result["failed"][name] = f"{type(error).__name__}: {str(error).strip()[:300]}"
            return None

    ceilings = clock.ceilings()
    result["ceilings"] = ceilings._asdict()
    result["checks"] = checks.run(TOY if rehearse else CHECKED, device) | buffer.checks(device)
    result["checks"] |= attention.checks(device, rehearse)
    if not rehearse:
        result["checks"]["buffer, compute-sanitizer"] = (
            stage("compute-sanitizer", 60, buffer.sanitized) or "not run"
        )
    for name, outcome in result["checks"].items():
        print(f"  {name}: {outcome}", flush=True)
    found = stage(
        "tune", 60, lambda: list(tune(shape.d, shape.F, shape.k, shape.N, device, clock.seconds))
    )
    result["tuned"] = [t._asdict() for t in found or ()]
    timings = stage("kernels", 60, lambda: kernels.run(shape, clock, ceilings)) or []
    result["kernels"] = [timing._asdict() for timing in timings]

    result["attention"] = stage(
        "attention", 0 if rehearse else 60, lambda: attention.run(clock, rehearse)
    )
    layers, context = (2, 16) if rehearse else (24, 1024)
    result["buffer"] = stage(
        "buffer", 0 if rehearse else 20, lambda: buffer.run(shape, clock, ceilings, layers)
    )
    model = end_to_end.make_model(layers, shape.d, 300 if rehearse else 50304, device)
    jobs = end_to_end.JOBS
    seconds = 0.0 if rehearse else 6.0
    result["end_to_end"] = []
    for job in jobs:
        outcome = stage(
            job.name,
            0 if rehearse else 30,
            lambda job=job: end_to_end.run(job, model, shape, context, ceilings, seconds=seconds),
        )
        if outcome:
            result["end_to_end"].append(outcome._asdict())
        if device.type == "cuda":
            torch.cuda.empty_cache()

    x = torch.randn(shape.N, shape.d, device=device).bfloat16()
    result["peers"] = {}
    for name, make in peers.steps(shape, device).items():
        result["peers"][name] = stage(
            name, 0 if rehearse else 15, lambda make=make: peers.seconds(make, x, clock)
        )
    result["quality"] = stage("quality", 0 if rehearse else 60, lambda: quality.run(device, rehearse))
    return result


def _device(device: torch.device) -> dict[str, Any]:
    import triton

    if device.type != "cuda":
        return {"device": "none: a rehearsal in Triton's interpreter", "triton": triton.__version__}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device memory": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
