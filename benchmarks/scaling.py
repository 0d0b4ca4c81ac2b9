"""What a training step costs against each of its sizes, and where memory ends.

One sweep a variable, from the first of the shapes that all benchmarks share. `blocks` takes the rows
of any sweeps, and of scaling_ranks, together.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import scaling_ranks
from benchmarks.record import Row
from benchmarks.scaling_fit import PROCESS, Point, fit, memory_bytes, memory_end, point_of
from benchmarks.tables import Block
from benchmarks.workers import measure
from trustbench.ops import dispatch
from trustbench.ops.spec import BENCHMARK_SHAPES

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
    "quick": {"N": (512,), "F": (4096, 32768), "k": (128,), "d": (128,), "layers": (2,)},
}
_ROUNDS = {"full": 7, "quick": 3}


def rows(extent: str) -> Iterator[Row]:
    """A row for every point of every sweep, and for every run on several processes."""
    for variable in BASE._fields:
        for point in points(variable, extent):
            yield {"sweep": variable} | measured(point, _ROUNDS[extent], free_memory())
    yield from scaling_ranks.sweep(extent)


def points(variable: str, extent: str) -> list[Point]:
    """The points of one sweep; extent: full or quick."""
    return [BASE._replace(**{variable: value}) for value in SWEEPS[extent][variable]]


def free_memory() -> int:
    """Bytes that a new process can have without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def measured(point: Point, rounds: int, free: int) -> Row:
    """One full training step of all layers: the median seconds of warm rounds, and the peak memory.

    It runs in a process of its own, and not at all when it would not fit in `free` bytes: then
    `seconds` is None and `why` says so.
    """
    bf16, threads = dispatch.has_fast_bf16(), torch.get_num_threads()
    predicted = memory_bytes(point, threads, bf16=bf16)
    row = {
        **point._asdict(), "threads": threads, "bf16": bf16, "free": free, "predicted": predicted,
        "seconds": None,
    }  # fmt: skip
    if PROCESS + predicted > free:
        return row | {"why": f"does not fit: needs {_gb(predicted + PROCESS)}, {_gb(free)} are free"}
    options = {**point._asdict(), "bf16": bf16, "lr": 1e-4, "steps": 1000, "dead_after": 0}
    times = measure("steps", ["trustbench"], options, rounds)["trustbench"]
    if "absent" in times:  # how a system without memory ends a process, for one
        return row | {"why": times["absent"]}
    row |= {"seconds": times["seconds"], "fastest": times["least"], "slowest": times["largest"]}
    return row | {"peak": round(times["peak_mb"] * 2**20)}


def blocks(rows: Sequence[Row]) -> list[Block]:
    """Sweeps with their fit, what a step is made of, where memory ends, processes."""
    steps = [row for row in rows if row["sweep"] in BASE._fields]
    ranks = [row for row in rows if row["sweep"] not in BASE._fields]
    found = [*_steps(steps), *_ends(steps)] if any(row["seconds"] for row in steps) else []
    return found + (scaling_ranks.blocks(ranks) if ranks else [])


def _steps(rows: Sequence[Row]) -> list[Block]:
    cost = fit(rows)
    kind = "bf16" if rows[0]["bf16"] else "fp32"
    about = ", ".join(f"{name} = {value:,}" for name, value in BASE._asdict().items())
    body = []
    for row in rows:
        fitted = f"{1e3 * cost.seconds(point_of(row)):,.1f}"
        taken = row["why"] if row["seconds"] is None else f"{1e3 * row['seconds']:,.1f}"
        peak = "" if row["seconds"] is None else _mb(row["peak"])
        cells = [row["sweep"], f"{row[row['sweep']]:,}", taken, fitted, peak, _mb(row["predicted"])]
        body.append(cells)
    off, base = sorted(abs(error) for error in cost.errors), cost.parts(BASE)
    parts = [
        [name, f"{each:.3g}", f"{1e3 * base[name]:.1f}", f"{base[name] / cost.seconds(BASE):.0%}"]
        for name, each in cost.coefficients.items()
    ]
    return [
        f"One Adam step of every layer, {kind} matmul, {rows[0]['threads']} threads; where not said"
        f" otherwise {about}. A process a point, medians of warm steps. Peak memory is above the bare"
        " process; predicted is what is in use at once, and the C library may keep up to 3 N d floats"
        " more.",
        (["", "", "ms", "fitted, ms", "peak memory, MB", "predicted, MB"], body),
        f"Fitted to relative errors over {len(off)} points: half are within"
        f" {statistics.median(off):.0%}, all within {off[-1]:.0%}.{_drift(rows)}",
        (["part of a layer's step", "seconds a unit", "of the base, ms", "share"], parts),
    ]


def _drift(rows: Sequence[Row]) -> str:
    """How steady the machine was: the base is a point of several sweeps."""
    again = [row["seconds"] for row in rows if point_of(row) == BASE and row["seconds"]]
    if len(again) < 2:
        return ""
    low, high = 1e3 * min(again), 1e3 * max(again)
    return f" The base, measured {len(again)} times: {low:.1f} to {high:.1f} ms."


def _ends(rows: Sequence[Row]) -> list[Block]:
    cost, free = fit(rows), min(row["free"] for row in rows)
    body = []
    for name in BASE._fields:
        end = memory_end(BASE, name, free, rows[0]["threads"], bf16=rows[0]["bf16"])
        seconds = cost.seconds(BASE._replace(**{name: end})) if end else 0.0
        body.append(
            [name, f"{end:,}", f"{seconds:,.1f}"] if end else [name, "no end: k = F fits", ""]
        )
    return [
        f"Where {_gb(free)} of free memory end, the other sizes as in the base (steps alone: the"
        " model and the shuffling buffer come on top):",
        (["", "most", "a step would take, s"], body),
    ]


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f}"
