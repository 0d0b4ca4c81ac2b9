"""One full Adam training step with unit-norm decoder, against every peer, in fp32 and bf16."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.roofline import Floor
from benchmarks.shapes import label
from benchmarks.suite import MEASURED, Suite
from benchmarks.workers import Measured, measure
from trustbench.ops.spec import Shape

SUBJECT = "step"
CONTENDERS = (
    "trustbench", "sparsify", "SAELens", "dictionary_learning", "overcomplete",
    "PyTorch dense", "PyTorch dense, compiled", "matmul only",
)  # fmt: skip
MATMULS = ("fp32", "bf16")


def floor(shape: Shape, matmul: str) -> Floor:
    """The encoder's matmul, four gathers over the code, and Adam reading and writing its state."""
    N, d, F, k = shape
    least_rows = min(N * k, F) * d * 4.0  # what a gather or a scatter over the code must touch
    adam = 2 * 6 * 4.0 * F * d  # two matrices: weight and both moments, read and written
    return Floor(adam + 2 * least_rows + 12.0 * N * d, 2.0 * N * d * F, matmul)


@MEASURED
@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_step(case: Shape, contender: str, matmul: str, suite: Suite, benchmark: Any) -> None:
    def run() -> dict[str, Measured]:
        options = {"bf16": matmul == "bf16", "lr": 1e-4, "steps": 1000, "dead_after": 0}
        runs = {name: (name, case._asdict() | options) for name in CONTENDERS}
        return measure(
            "steps", runs, peers_python=suite.peers_python, rounds=suite.scale.rounds, memory=True
        )

    found = suite.once((SUBJECT, case, matmul), run)[contender]
    row = {"case": label(case), "contender": contender, "matmul": matmul}
    suite.report(benchmark, SUBJECT, row, found, floor(case, matmul))
