"""Contenders of a job measured together: on a CPU in a process each, on a GPU in this one."""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.clocks import clock_of, failure, host_waits
from benchmarks.peers import heap

ROOT = Path(__file__).parents[1]
# Those that are not named here run in this environment.
PEERS = {
    "sparsify", "SAELens", "dictionary_learning", "overcomplete", "TransformerLens", "nnsight",
}  # fmt: skip


class Worker:
    """One contender for one job; `absent` says why there is none."""

    def __init__(
        self, job: str, contender: str, peers_python: str, options: Mapping[str, Any]
    ) -> None:
        python = peers_python if contender in PEERS else sys.executable
        self.job, self.contender = job, contender
        self.absent: str | None = None
        self.version: str | None = None
        self.process: subprocess.Popen[str] | None = None
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by close)
        try:
            self.process = subprocess.Popen(
                [python, "-m", "benchmarks.peers.worker"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
                env=heap.keeping(),
            )
        except OSError as error:
            self.absent = f"{python}: {error.strerror}"
            return
        self.build(options)

    def build(self, options: Mapping[str, Any]) -> None:
        """Make the contender, or make it anew with other options."""
        answer = self.ask(
            do="build", job=self.job, contender=self.contender, threads=torch.get_num_threads(),
            options=dict(options),
        )  # fmt: skip
        self.absent = answer.get("absent", self.absent)
        self.version = answer.get("version", self.version)

    def ask(self, **question: Any) -> dict[str, Any]:
        """The worker's answer; {} once it is absent, whether from the start or because it died."""
        if self.absent or self.process is None:
            return {}
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.absent = f"its process ended with status {self.process.wait()}{self._last_words()}"
            return {}
        return json.loads(answer)

    def call(self, method: str, **arguments: Any) -> Any:
        """What a method of the contender returns; None where it is absent."""
        return self.ask(do="call", method=method, **{"with": arguments}).get("answer")

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def start(
    job: str, contenders: Sequence[str], options: Mapping[str, Any], peers_python: str
) -> dict[str, Worker]:
    """A worker each, two starting at a time: importing a peer takes seconds."""
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda name: Worker(job, name, peers_python, options), contenders)
        return dict(zip(contenders, made, strict=True))


def figures(seconds: list[float], version: str | None, absent: str | None) -> dict[str, Any]:
    """What a row says of a contender: its times, or why there are none."""
    found: dict[str, Any] = {"version": version}
    if absent or not seconds:
        return found | {"absent": absent or "nothing was measured"}
    return found | {
        "seconds": median(seconds), "least": min(seconds), "largest": max(seconds),
        "rounds": len(seconds),
    }  # fmt: skip


def measure(
    job: str,
    contenders: Sequence[str],
    options: Mapping[str, Any],
    rounds: int,
    peers_python: str = sys.executable,
) -> dict[str, dict[str, Any]]:
    """Time contenders A B C ... A B C ...: a machine whose speed drifts is fair to all.

    Parameters
    ----------
    job : str
        A module of benchmarks/peers.
    contenders : sequence of str
        Names of its CONTENDERS.
    options : mapping
        What each is made with.
    rounds : int
        After a third as many to warm up, and two at least: so long heaps grow (peers/heap.py).

    Returns
    -------
    {contender: its times, its peak memory in one more run, and what else it has to say}
    """
    workers = start(job, contenders, options, peers_python)
    try:
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        warm = max(2, rounds // 3)
        for round_ in range(warm + rounds):
            for name, worker in workers.items():
                answer = worker.ask(do="round")
                if answer and round_ >= warm:
                    seconds[name].append(answer["seconds"])
        found = {}
        for name, worker in workers.items():
            more = {f"{k}_mb": max(0, v) / 2**20 for k, v in worker.ask(do="memory").items()}
            more |= worker.call("more") or {}
            found[name] = figures(seconds[name], worker.version, worker.absent) | more
        return found
    finally:
        for worker in workers.values():
            worker.close()


def measure_here(
    job: str, contenders: Sequence[str], options: Mapping[str, Any], rounds: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """The same in this process, for a GPU, whose memory holds one contender after the other."""
    kinds = importlib.import_module(f"benchmarks.peers.{job}").CONTENDERS
    options = {**options, "device": device.type}
    return {name: _alone(kinds[name], options, rounds, device) for name in contenders}


def _alone(
    kind: Any, options: Mapping[str, Any], rounds: int, device: torch.device
) -> dict[str, Any]:
    clock, on_gpu = clock_of(device), device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    bare = torch.cuda.memory_allocated(device) if on_gpu else 0
    try:
        made = kind(**options)
        given = made.prepare()

        def run() -> None:
            for _ in range(made.repeats):
                made.run(given)

        for _ in range(3 if on_gpu else 0):
            run()
        times = [clock(run) / made.repeats for _ in range(rounds if on_gpu else 1)]
        found = figures(times, made.version, None)
        if on_gpu:
            peak = torch.cuda.max_memory_allocated(device) - bare
            found |= {"peak_mb": peak / 2**20, "host_waits": host_waits(run)}
        return found
    except Exception as error:  # a peer that is missing or fails costs its own figures alone
        return figures([], None, failure(error))
