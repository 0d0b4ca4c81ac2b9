"""Activations into a shuffling buffer and out again, against memcpy and the peers' buffers."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.roofline import Floor
from benchmarks.shapes import Buffer, label
from benchmarks.suite import MEASURED, Suite
from benchmarks.workers import Measured, measure

SUBJECT = "buffer"
CONTENDERS = (
    "trustbench", "trustbench, MXFP8", "trustbench, host tier", "trustbench, disk tier",
    "SAELens", "dictionary_learning", "shuffled blocks", "memcpy",
)  # fmt: skip
MIXED = ("trustbench", "trustbench, host tier", "SAELens", "dictionary_learning", "shuffled blocks")
DOCUMENT = 512  # tokens a document, for mixing


@MEASURED
@pytest.mark.parametrize("contender", CONTENDERS)
def test_buffer(case: Buffer, contender: str, suite: Suite, benchmark: Any) -> None:
    def run() -> dict[str, Measured]:
        runs = {name: (name, case._asdict()) for name in CONTENDERS}
        # Not more rounds than five: each is eight batches of every contender.
        return measure(
            "buffers", runs, peers_python=suite.peers_python, rounds=min(5, suite.scale.rounds),
            calls={name: ("mixing", {"document": DOCUMENT}) for name in MIXED},
        )  # fmt: skip

    found = suite.once((SUBJECT, case), run)[contender]
    moved = 2 * 2.0 * case.layers * case.tokens * case.d * 2  # put and taken, read and written
    suite.report(
        benchmark, SUBJECT, {"case": label(case), "contender": contender}, found, Floor(moved)
    )
