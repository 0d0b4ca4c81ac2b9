"""Contenders in processes of their own, and all of a case measured together, round by round."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.peers import heap

_WORKER = Path(__file__).parent / "peers" / "worker.py"
# Whoever is not named here runs in this environment.
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
                [python, str(_WORKER)],
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


class Measured(NamedTuple):
    """What one contender did in one case."""

    seconds: list[float]
    version: str | None
    absent: str | None
    answers: dict[str, Any]  # memory, and whatever else it was asked


def start(
    job: str, contenders: Mapping[str, tuple[str, Mapping[str, Any]]], peers_python: str
) -> dict[str, Worker]:
    """A worker each, two starting at a time: importing a peer takes seconds."""
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(
            lambda wanted: Worker(job, wanted[0], peers_python, wanted[1]), contenders.values()
        )
        return dict(zip(contenders, made, strict=True))


def measure(
    job: str,
    contenders: Mapping[str, tuple[str, Mapping[str, Any]]],
    *,
    peers_python: str,
    rounds: int,
    memory: bool = False,
    calls: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
) -> dict[str, Measured]:
    """Time contenders A B C ... A B C ...: a machine whose speed drifts is fair to all.

    Parameters
    ----------
    job : str
        A module of benchmarks/peers.
    contenders : {label: (contender, its options)}
    rounds : int
        After a third as many to warm up, and two at least: so long heaps grow (peers/heap.py).
    memory : bool
        Ask for the peak memory of one more run.
    calls : {label: (method, its arguments)} or None
        What to ask some of them at the end; the answer stands under the method's name.
    """
    workers = start(job, contenders, peers_python)
    try:
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        warm = max(2, rounds // 3)
        for round_ in range(warm + rounds):
            for name, worker in workers.items():
                answer = worker.ask(do="round")
                if answer and round_ >= warm:
                    seconds[name].append(answer["seconds"])
        answers: dict[str, dict[str, Any]] = {name: {} for name in workers}
        for name, worker in workers.items():
            if memory and (found := worker.ask(do="memory")):
                answers[name] = {f"{k}_mb": max(0, v) / 2**20 for k, v in found.items()}
            if calls and name in calls:
                method, arguments = calls[name]
                answers[name][method] = worker.call(method, **arguments)
        return {
            name: Measured(seconds[name], worker.version, worker.absent, answers[name])
            for name, worker in workers.items()
        }
    finally:
        for worker in workers.values():
            worker.close()
