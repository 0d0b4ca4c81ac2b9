"""The GPU's benchmarks, rehearsed at toy sizes: every stage runs, every check passes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.record import read

ROOT = Path(__file__).parents[1]


def test_the_rehearsal_runs_every_stage(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--gpu", "--rehearse", "--out", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    rows, _ = read(tmp_path / "gpu.jsonl")
    stages = ["checks", "tune", "ops", "step", "buffer", "attention", "train"]
    assert rows.unique("subject") == stages
    assert all(row["outcome"] == "ok" for row in rows.where(subject="checks"))
    for row in rows.where(subject="train"):
        assert row.get("tokens_per_second", row.get("worst_fvu")) > 0
    mine = [r for r in rows.where(lambda row: row["contender"] == "trustbench") if "absent" in r]
    assert not mine and not run.stderr.count("FAILED")
