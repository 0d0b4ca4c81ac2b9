"""A record at toy sizes, made up: what the suite writes, without measuring anything."""

from __future__ import annotations

from typing import Any

from trustbench.report import Table

ABOUT: dict[str, Any] = {
    "config": {"scale": "toy", "ceilings": {"copy": 1e10, "fp32": 1e11, "bf16": 4e11}},
    "commit": "abc1234", "versions": {"trustbench": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
    "device": "A Processor", "threads": 2, "seed": None, "seconds": None,
    "date": "2026-01-01", "isa": "avx2", "cores": 2,
}  # fmt: skip
CURVE = {
    "tokens": [100, 200], "trained": [1.0, 2.0], "fvu": [0.5, 0.25], "never_active": [0.1, 0.2],
}  # fmt: skip
MIXING = {"same_document": 0.02, "distance": 900.0, "spread": 3.0}


def row(subject: str, contender: str, seconds: float, **more: Any) -> dict[str, Any]:
    """One contender of one case."""
    times = {"seconds": seconds, "least": seconds, "largest": seconds, "rounds": 3}
    head = {"subject": subject, "case": "N = 8", "contender": contender, "version": "1.0"}
    return head | times | {"floor": seconds / 2} | more


def record() -> Table:
    """Every subject; overcomplete is absent."""
    gone = {"case": "N = 8", "contender": "overcomplete", "version": None, "absent": "not there"}
    memory = {"peak_mb": 100.0, "step_mb": 10.0}
    found = []
    for matmul, times in (("fp32", 1), ("bf16", 2)):
        for name, seconds in (("trustbench", 0.1), ("sparsify", 0.4), ("matmul only", 0.05)):
            found.append(row("step", name, seconds / times, matmul=matmul, **memory))
        found.append({"subject": "step", "matmul": matmul, **gone})
    for name, seconds in (("trustbench", 0.1), ("sparsify", 0.4)):
        found.append(row("quality", name, seconds, rate=0.001, **CURVE | {"fvu": [0.6, 0.5]}))
        found.append(row("quality", name, seconds, rate=0.003, **CURVE))
    found.append({"subject": "quality", "rate": 0.003, **gone})
    found.append(row("ops", "trustbench", 0.1, case="decode: N = 8"))
    found.append(row("ops", "torch: embedding_bag", 0.3, case="decode: N = 8"))
    for name, seconds in (("trustbench", 0.1), ("SAELens", 2.0), ("memcpy", 0.08)):
        found.append(row("buffer", name, seconds, **MIXING))
    for name, seconds in (("trustbench", 0.1), ("SDPA, no statistics", 0.2)):
        found.append(row("attention", name, seconds, peak_mb=5.0))
    for name, seconds in (("trustbench", 0.1), ("nnsight", 0.5)):
        found.append(row("capture", name, seconds, peak_mb=5.0))
    return Table(found)


def changed(**columns: Any) -> Table:
    """The record with functions of columns: {column: new value of (row)}."""
    return Table(
        {name: columns[name](r) if name in columns else value for name, value in r.items()}
        for r in record()
    )
