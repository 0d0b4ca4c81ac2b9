"""What a training step costs against each of its sizes, and where memory ends.

One sweep a variable, from the first of the shapes that all benchmarks share. `table` and `figure`
take the rows of any sweeps, and of scaling_ranks, together.

    pytest benchmarks/test_scaling.py --scale full
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import scaling_ranks
from benchmarks.peers import heap
from benchmarks.scaling_figure import figure
from benchmarks.scaling_fit import (
    PROCESS,
    Fit,
    Point,
    fit,
    memory_bytes,
    memory_end,
    point_of,
)
from trustbench.ops import dispatch
from trustbench.ops.spec import BENCHMARK_SHAPES

__all__ = ["BASE", "SWEEPS", "figure", "free_memory", "measure", "points", "sweep", "table"]

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]
BASE = Point(*BENCHMARK_SHAPES[0])
# Values of each variable. The full sweeps all pass through the base, so that a machine whose speed
# drifts shows.
SWEEPS: dict[str, dict[str, tuple[int, ...]]] = {
    "full": {
        "N": (256, 512, 1024, 2048, 4096, 8192, 16384),
        "F": (4096, 8192, 16384, 32768, 65536, 131072, 262144),
        "k": (8, 16, 32, 64, 128, 256),
        "d": (128, 256, 512, 1024, 2048),
        "layers": (1, 2, 4, 8, 16),
    },
    "quick": {
        "N": (512,),
        "F": (4096, 32768),
        "k": (128,),
        "d": (128,),
        "layers": (2,),
    },
}
_ROUNDS = {"full": 7, "quick": 3}


def points(variable: str, extent: str) -> list[Point]:
    """The points of one sweep; extent: full or quick."""
    return [BASE._replace(**{variable: value}) for value in SWEEPS[extent][variable]]


def free_memory() -> int:
    """Bytes that a new process can have without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def measure(point: Point, rounds: int, free: int) -> Row:
    """One full training step of all layers: the median seconds of warm rounds, and the peak memory.

    It runs in a process of its own, and not at all when it would not fit in `free` bytes: then
    `seconds` is None and `why` says so.
    """
    bf16 = dispatch.has_fast_bf16()
    threads = torch.get_num_threads()
    predicted = memory_bytes(point, threads, bf16=bf16)
    row = {
        **point._asdict(), "threads": threads, "bf16": bf16, "free": free, "predicted": predicted,
        "seconds": None,
    }  # fmt: skip
    if PROCESS + predicted > free:
        return row | {"why": f"does not fit: needs {_gb(predicted + PROCESS)}, {_gb(free)} are free"}
    ask = json.dumps({"point": point, "rounds": rounds, "threads": threads})
    command = [sys.executable, "-m", "benchmarks.scaling_worker", ask]
    run = subprocess.run(command, cwd=ROOT, env=heap.plain(), capture_output=True, text=True)
    if run.returncode < 0:  # how a system without memory ends a process
        return row | {"why": f"ended by signal {-run.returncode}"}
    if run.returncode:
        raise RuntimeError(f"{point}: {run.stderr.strip()}")
    answer = json.loads(run.stdout)
    times = answer["seconds"]
    row |= {"seconds": statistics.median(times), "fastest": min(times), "slowest": max(times)}
    return row | {"peak": answer["peak"]}


def sweep(variable: str, extent: str) -> list[Row]:
    """A row for every point of one sweep."""
    rounds = _ROUNDS[extent]
    found = [measure(point, rounds, free_memory()) for point in points(variable, extent)]
    return [{"sweep": variable} | row for row in found]


def table(rows: Sequence[Row]) -> str:
    """Markdown: sweeps with their fit, what a step is made of, where memory ends, processes."""
    steps = [row for row in rows if row["sweep"] in BASE._fields]
    parts = []
    if any(row["seconds"] for row in steps):
        parts = [_steps(steps), _ends(steps)]
    ranks = [row for row in rows if row["sweep"] not in BASE._fields]
    return "\n\n".join(parts + ([scaling_ranks.table(ranks)] if ranks else [])) + "\n"


def _steps(rows: Sequence[Row]) -> str:
    cost = fit(rows)
    kind = "bf16" if rows[0]["bf16"] else "fp32"
    about = ", ".join(f"{name} = {value:,}" for name, value in BASE._asdict().items())
    lines = [
        f"One Adam step of every layer, {kind} matmul, {rows[0]['threads']} threads; where not said"
        f" otherwise {about}. A process a point, medians of warm steps. Peak memory is above the"
        " bare process; predicted is what is in use at once, and the C library may keep up to"
        " 3 N d floats more.",
        "",
        "| | | ms | fitted, ms | peak memory, MB | predicted, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        name, value = row["sweep"], row[row["sweep"]]
        fitted = 1e3 * cost.seconds(point_of(row))
        if row["seconds"] is None:
            lines.append(
                f"| {name} | {value:,} | {row['why']} | {fitted:,.1f} | | {_mb(row['predicted'])} |"
            )
            continue
        lines.append(
            f"| {name} | {value:,} | {1e3 * row['seconds']:,.1f} | {fitted:,.1f} |"
            f" {_mb(row['peak'])} | {_mb(row['predicted'])} |"
        )
    return "\n".join([*lines, "", *_fitted(cost, rows)])


def _fitted(cost: Fit, rows: Sequence[Row]) -> list[str]:
    off = sorted(abs(error) for error in cost.errors)
    base = cost.parts(BASE)
    lines = [
        f"Fitted to relative errors over {len(off)} points: half are within"
        f" {statistics.median(off):.0%}, all within {off[-1]:.0%}.{_drift(rows)}",
        "",
        "| part of a layer's step | seconds a unit | of the base, ms | share |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, each in cost.coefficients.items():
        share = base[name] / cost.seconds(BASE)
        lines.append(f"| {name} | {each:.3g} | {1e3 * base[name]:.1f} | {share:.0%} |")
    return lines


def _drift(rows: Sequence[Row]) -> str:
    """How steady the machine was: the base is a point of several sweeps."""
    again = [row["seconds"] for row in rows if point_of(row) == BASE and row["seconds"]]
    if len(again) < 2:
        return ""
    low, high = 1e3 * min(again), 1e3 * max(again)
    return f" The base, measured {len(again)} times: {low:.1f} to {high:.1f} ms."


def _ends(rows: Sequence[Row]) -> str:
    cost, free = fit(rows), min(row["free"] for row in rows)
    lines = [
        f"Where {_gb(free)} of free memory end, the other sizes as in the base (steps alone: the"
        " model and the shuffling buffer come on top):",
        "",
        "| | most | a step would take, s |",
        "| --- | ---: | ---: |",
    ]
    for name in BASE._fields:
        end = memory_end(BASE, name, free, rows[0]["threads"], bf16=rows[0]["bf16"])
        if end is None:
            lines.append(f"| {name} | no end: k = F fits | |")
        else:
            seconds = cost.seconds(BASE._replace(**{name: end}))
            lines.append(f"| {name} | {end:,} | {seconds:,.1f} |")
    return "\n".join(lines)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f}"
