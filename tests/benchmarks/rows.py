"""A record at toy sizes, made up: what the suite writes, without measuring anything."""

from __future__ import annotations

import copy
from typing import Any

CURVE = [
    {"tokens": 100, "seconds": 1.0, "fvu": 0.5, "never_active": 0.1},
    {"tokens": 200, "seconds": 2.0, "fvu": 0.25, "never_active": 0.2},
]
MIXING = {"same_document": 0.02, "distance": 900.0, "spread": 3.0}


def benchmark(subject: str, seconds: float, **row: Any) -> dict[str, Any]:
    """One case as pytest-benchmark writes it."""
    row = {"case": "N = 8", "version": "1.0", "floor": seconds / 2} | row
    stats = {"median": seconds, "min": seconds, "max": seconds, "rounds": 3, "data": [seconds] * 3}
    return {"name": "test", "extra_info": {subject: row}, "stats": stats}


def record() -> dict[str, Any]:
    """Every subject; overcomplete is absent."""
    memory = {"peak_mb": 100.0, "step_mb": 10.0}
    found = []
    for name, seconds in (("trustbench", 0.1), ("sparsify", 0.4), ("matmul only", 0.05)):
        for matmul in ("fp32", "bf16"):
            times = seconds / (2 if matmul == "bf16" else 1)
            found.append(benchmark("step", times, contender=name, matmul=matmul, **memory))
    for name, seconds in (("trustbench", 0.1), ("sparsify", 0.4)):
        row = {"contender": name, "rate": 0.003, "curve": CURVE, "rates": {"0.003": CURVE[-1]}}
        found.append(benchmark("quality", seconds, **row))
    found.append(benchmark("ops", 0.1, contender="trustbench", case="decode: N = 8"))
    found.append(benchmark("ops", 0.3, contender="torch: embedding_bag", case="decode: N = 8"))
    for name, seconds in (("trustbench", 0.1), ("SAELens", 2.0), ("memcpy", 0.08)):
        found.append(benchmark("buffer", seconds, contender=name, mixing=MIXING))
    for name, seconds in (("trustbench", 0.1), ("SDPA, no statistics", 0.2)):
        found.append(benchmark("attention", seconds, contender=name, peak_mb=5.0))
    for name, seconds in (("trustbench", 0.1), ("nnsight", 0.5)):
        found.append(benchmark("capture", seconds, contender=name, peak_mb=5.0))
    gone = {"case": "N = 8", "contender": "overcomplete", "version": None, "absent": "not there"}
    return copy.deepcopy(
        {
            "machine_info": {
                "date": "2026-01-01", "cpu": "A Processor", "isa": "avx2", "cores": 2, "threads": 2,
                "trustbench": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "commit": "abc1234",
                "scale": "toy",
                "ceilings": {"bytes_per_second": 1e10, "flops": {"fp32": 1e11, "bf16": 4e11}},
            },
            "benchmarks": found,
            "absent": [
                {"subject": "step", "matmul": matmul, **gone} for matmul in ("fp32", "bf16")
            ] + [{"subject": "quality", **gone}],
        }
    )  # fmt: skip
