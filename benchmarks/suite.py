"""One run: every subject's cases through the measuring core, a row for each contender."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks import quality, scaling
from benchmarks.cases import ROUNDS, Case, cases
from benchmarks.clocks import clock_of, interleaved, seconds
from benchmarks.floors import measure_ceilings
from benchmarks.record import Row, about
from benchmarks.workers import figures, measure
from trustbench import __version__
from trustbench.report import Table

SUBJECTS = ("step", "quality", "ops", "buffer", "attention", "capture", "scaling")
Measured = Callable[..., dict[str, dict[str, Any]]]  # (job, contenders, options, rounds) -> figures


def run(
    scale: str, only: Iterable[str], peers_python: str
) -> tuple[Table, dict[str, Any], list[str]]:
    """Measure this machine's CPU: rows, what they were measured on, and what failed.

    Raises nothing for a peer that cannot be measured: it is a row that says why.
    """
    device = torch.device("cpu")
    ceilings = measure_ceilings(
        device, partial(seconds, clock=clock_of(device)), small=scale == "toy"
    )
    said = about(scale, ceilings, device)
    rows = Table()
    for subject in only or SUBJECTS:
        for row in _MEASURE.get(subject, _timed)(subject, scale, peers_python, ceilings):
            rows.append({"subject": subject} | row)
    return rows, said, failures(rows)


def failures(rows: Iterable[Row]) -> list[str]:
    """What makes a run fail: one of ours absent, or speed bought with quality."""
    rows = list(rows)
    found = [
        f"{row['subject']}, {row['case']}: {row['contender']} is absent: {row['absent']}"
        for row in rows
        if "absent" in row and row["contender"].startswith("trustbench")
    ]
    worse = quality.bought([row for row in rows if row["subject"] == "quality"])
    return found + ([worse] if worse else [])


def rows_of(
    case: Case, found: Mapping[str, Mapping[str, Any]], ceilings: Mapping[str, float]
) -> Iterator[Row]:
    """A case's figures {contender: figures} as rows."""
    floor = {"floor": case.floor.seconds(ceilings)} if case.floor else {}
    for name, of in found.items():
        yield {"case": case.label, "contender": name, **case.keys, **of, **floor}


def ops_rows(
    table: list[Case], rounds: int, device: torch.device, ceilings: Mapping[str, float]
) -> Iterator[Row]:
    """The ops of every shape, in this process.

    Ops are quick, and a machine can be slow for half a minute: each round goes through all of them,
    so that the rounds of one op lie as far apart as there is time.
    """
    from benchmarks.peers.ops import CONTENDERS, Inputs

    for shape in dict.fromkeys(case.options["shape"] for case in table):
        mine = [case for case in table if case.options["shape"] == shape]
        kind = torch.bfloat16 if device.type == "cuda" else torch.float32
        inputs = Inputs(shape, device.type, kind)
        calls = {
            (case.label, who): partial(call, inputs)
            for case in mine
            for who, call in CONTENDERS[case.options["op"]].items()
        }
        taken = interleaved(calls, rounds, clock_of(device))
        for case in mine:
            found = {who: _times(who, taken[case.label, who]) for who in case.contenders}
            yield from rows_of(case, found, ceilings)


def _times(who: str, taken: list[float] | str) -> dict[str, Any]:
    version = __version__ if who == "trustbench" else torch.__version__
    if isinstance(taken, str):
        return figures([], version, taken)
    return figures(taken, version, None)


def timed(
    subject: str, scale: str, ceilings: Mapping[str, float], measured: Measured, *, gpu: bool = False
) -> Iterator[Row]:
    """The contenders of every case, measured by `workers.measure` or `workers.measure_here`."""
    for case in cases(subject, scale, gpu=gpu):
        print(f"{subject}: {case.label} ...", flush=True)
        # Each round of a buffer is eight batches of every contender.
        rounds = min(5, ROUNDS[scale]) if subject == "buffer" else ROUNDS[scale]
        job = {"step": "steps", "buffer": "buffers"}.get(subject, subject)
        found = measured(job, case.contenders, case.options, rounds)
        yield from rows_of(case, found, ceilings)


def _timed(
    subject: str, scale: str, peers_python: str, ceilings: Mapping[str, float]
) -> Iterator[Row]:
    yield from timed(subject, scale, ceilings, partial(measure, peers_python=peers_python))


def _ops(subject: str, scale: str, _: str, ceilings: Mapping[str, float]) -> Iterator[Row]:
    print("ops ...", flush=True)
    yield from ops_rows(cases(subject, scale), ROUNDS[scale], torch.device("cpu"), ceilings)


def _quality(subject: str, scale: str, peers_python: str, _: object) -> Iterator[Row]:
    for case in cases(subject, scale):
        print(f"quality: {case.label} ...", flush=True)
        for row in quality.rows(case, peers_python):
            yield {"case": case.label} | row


def _scaling(_: str, scale: str, *__: object) -> Iterator[Row]:
    print("scaling ...", flush=True)
    yield from scaling.rows("full" if scale == "full" else "quick")


_MEASURE: dict[str, Callable[..., Iterator[Row]]] = {
    "ops": _ops, "quality": _quality, "scaling": _scaling
}  # fmt: skip
