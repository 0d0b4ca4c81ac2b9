"""Strong and weak scaling of `trustbench train` over processes, started by torchrun.

Strong: the same run on more processes. Weak: as many times the layers (layers over ranks) or the
batch (tokens over ranks) as there are processes. On the CPU a process has one thread and speaks
gloo; on a machine with GPUs it has a card and speaks NCCL. The runs train on activations of the
demo's model, captured once, so that what is measured is training and not a model that fits anywhere.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.peers import heap
from benchmarks.tables import Block
from benchmarks.workers import ROOT
from trustbench.studies.demo import assets

LAYERS = 6  # of the demo's model: what layers over ranks can be divided among
_MOST_ON_CPU = 8
_LOG_EVERY = 4
# Ways of scaling, steps a run, and how often every run is repeated.
EXTENTS: dict[str, tuple[tuple[str, ...], int, int]] = {
    "full": (("strong, layers", "strong, tokens", "weak, layers", "weak, tokens"), 40, 2),
    "quick": (("strong, layers",), 12, 1),
}


class Run(NamedTuple):
    """One training run."""

    processes: int
    parallel: str  # layers or tokens: what is divided among the processes; "": one process
    layers: int
    batch: int


def processes() -> list[int]:
    """1, 2, 4, ...: up to the number of cards, or of cores where there are none."""
    most = torch.cuda.device_count() or min(os.cpu_count() or 1, _MOST_ON_CPU)
    return [2**i for i in range(most.bit_length())]


def plan(way: str, counts: Sequence[int], batch: int) -> list[Run]:
    """The runs of one way of scaling, on each number of processes that it can use."""
    parallel = way.split(", ")[1]
    if parallel == "layers":
        counts = [count for count in counts if count <= LAYERS]
    runs = []
    for count in counts:
        layers = LAYERS
        if way == "weak, layers":
            layers = LAYERS // max(counts) * count
        tokens = batch * count if way == "weak, tokens" else batch
        runs.append(Run(count, parallel if count > 1 else "", layers, tokens))
    return runs


def command(run: Run, cache: Path, out: Path, steps: int) -> list[str]:
    """What a person would type."""
    launcher = ["-m", "trustbench", "train"]
    if run.processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone"]
        launcher = [*torchrun, f"--nproc-per-node={run.processes}", *launcher]
    options: dict[str, object] = {
        "activations": cache, "out": out, "layers": list(range(run.layers)),
        "tokens": steps * run.batch, "batch_size": run.batch, "log_every": _LOG_EVERY,
        "checkpoint_minutes": 0, "sae.d_sae": _sizes()[1], "sae.k": 32,
        "sae.normalize": "expected_norm",
    }  # fmt: skip
    if run.parallel:
        options["parallel"] = run.parallel
    if not torch.cuda.is_available():
        options["threads"] = 1
    return [sys.executable, *launcher, *(f"--{name}={value}" for name, value in options.items())]


def _sizes() -> tuple[int, int]:
    """(batch, d_sae): what keeps a device busy without keeping it long."""
    return (16384, 32768) if torch.cuda.is_available() else (2048, 4096)


def speed(lines: Sequence[Mapping[str, Any]]) -> float:
    """Tokens a second: the median over metrics.jsonl, its first step left out as the warm-up."""
    by_step = {line["step"]: line["tokens_per_second"] for line in lines}
    return statistics.median(list(by_step.values())[1:])


def sweep(extent: str) -> list[dict[str, Any]]:
    """A row for every run of every way of scaling; extent: full or quick."""
    ways, steps, rounds = EXTENTS[extent]
    batch, _ = _sizes()
    runs = {way: plan(way, processes(), batch) for way in ways}
    speeds: dict[Run, list[float]] = {run: [] for way in ways for run in runs[way]}
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory) / "activations"
        _call(
            [sys.executable, "-m", "trustbench", "capture", f"--model={assets.MODEL}",
             f"--data={assets.TRAIN_TEXT}", f"--out={cache}", f"--tokens={16 * batch}"]
        )  # fmt: skip
        for round_ in range(rounds):
            for run, found in speeds.items():
                out = Path(directory) / f"{'-'.join(map(str, run))}-{round_}"
                _call(command(run, cache, out, steps))
                lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
                found.append(speed([json.loads(line) for line in lines]))
    median = {run: statistics.median(found) for run, found in speeds.items()}
    return [row for way in ways for row in compare(way, {run: median[run] for run in runs[way]})]


def _call(arguments: list[str]) -> None:
    run = subprocess.run(
        arguments,
        cwd=ROOT,
        env=heap.plain() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise RuntimeError(f"{' '.join(arguments)}\n{run.stderr[-3000:]}")


def compare(way: str, speeds: Mapping[Run, float]) -> list[dict[str, Any]]:
    """Rows with speed-up (layers times tokens a second, against one process) and efficiency."""
    first = next(iter(speeds))
    rows = []
    for run, found in speeds.items():
        speed_up = found * run.layers / (speeds[first] * first.layers)
        rows.append(
            {
                "sweep": way, **run._asdict(), "tokens_per_second": found, "speed_up": speed_up,
                "efficiency": speed_up / run.processes, "cards": torch.cuda.device_count(),
            }
        )  # fmt: skip
    return rows


def blocks(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    """What the rows are of, and their table."""
    where = "one card a process, NCCL" if rows[0]["cards"] else "one thread a process, gloo"
    head = ["scaling", "processes", "layers", "batch", "tokens/s", "speed-up", "efficiency"]
    body = [
        [
            row["sweep"], f"{row['processes']}", f"{row['layers']}", f"{row['batch']:,}",
            f"{row['tokens_per_second']:,.0f}", f"{row['speed_up']:.2f} ×",
            f"{row['efficiency']:.0%}",
        ]
        for row in rows
    ]  # fmt: skip
    return [
        f"Training on cached activations of the demo's model, {where}. Speed-up is in layers times"
        " tokens a second, against one process.",
        (head, body),
    ]
