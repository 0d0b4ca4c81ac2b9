"""attention_capture against full matrices, and against torch's own attention."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.roofline import Floor
from benchmarks.shapes import Attention, label
from benchmarks.suite import MEASURED, Suite
from benchmarks.workers import Measured, measure
from trustbench.ops.attention_capture import SPEC
from trustbench.ops.spec import Shape

SUBJECT = "attention"
CONTENDERS = (
    "trustbench", "eager, full matrices", "SDPA, no statistics", "flex_attention, no statistics",
)  # fmt: skip


@MEASURED
@pytest.mark.parametrize("contender", CONTENDERS)
def test_attention(case: Attention, contender: str, suite: Suite, benchmark: Any) -> None:
    def run() -> dict[str, Measured]:
        runs = {name: (name, case._asdict()) for name in CONTENDERS}
        return measure(
            "attention", runs, peers_python=suite.peers_python, rounds=suite.scale.rounds, memory=True
        )

    found = suite.once((SUBJECT, case), run)[contender]
    head = Shape(case.T, case.D, 1, 1)  # the SPEC counts one head
    floor = Floor(case.heads * SPEC.bytes(head), case.heads * SPEC.flops(head))
    suite.report(benchmark, SUBJECT, {"case": label(case), "contender": contender}, found, floor)
