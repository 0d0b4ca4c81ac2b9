"""The GPU benchmark's script, rehearsed at toy sizes: every stage runs, every check passes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_rehearsal_runs_every_stage():
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--rehearse"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    for title in ("Checks", "Kernels", "Tuned", "End to end"):
        assert f"## {title}" in run.stdout
    assert "fvu against the CPU's fp32 path at equal steps" in run.stdout
    assert "Left out" not in run.stdout and "Failed" not in run.stdout
