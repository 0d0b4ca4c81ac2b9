"""A model's forward with the attention of every head, against what others run for it."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.roofline import Floor
from benchmarks.shapes import Model, label
from benchmarks.suite import MEASURED, Suite
from benchmarks.workers import Measured, measure

SUBJECT = "capture"
CONTENDERS = (
    "trustbench", "eager, output_attentions", "TransformerLens", "nnsight", "forward alone",
)  # fmt: skip


def floor(model: Model) -> Floor:
    """The matmuls of a forward in fp32, half of the attention's (it is causal), weights read once."""
    weights = 12.0 * model.layers * model.d**2  # attention 4 d², MLP 8 d²
    attention = 2.0 * model.layers * model.T**2 * model.d
    return Floor(4 * weights, 2 * weights * model.T + attention)


@MEASURED
@pytest.mark.parametrize("contender", CONTENDERS)
def test_capture(case: Model, contender: str, suite: Suite, benchmark: Any) -> None:
    def run() -> dict[str, Measured]:
        runs = {name: (name, case._asdict()) for name in CONTENDERS}
        return measure(
            "capture", runs, peers_python=suite.peers_python, rounds=suite.scale.rounds, memory=True
        )

    found = suite.once((SUBJECT, case), run)[contender]
    row = {"case": label(case), "contender": contender}
    suite.report(benchmark, SUBJECT, row, found, floor(case))
