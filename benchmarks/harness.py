"""Starting workers, and writing results down."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"
OURS = {"matmul only", "trustbench", "PyTorch dense", "PyTorch dense, compiled"}


class Worker:
    """A contender in its own process."""

    def __init__(self, contender: str, peers_python: str, **build: Any) -> None:
        python = sys.executable if contender in OURS else peers_python
        self.name, self.bf16 = contender, build["bf16"]
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        answer = self.ask(do="build", contender=contender, threads=torch.get_num_threads(), **build)
        self.absent, self.version = answer.get("absent"), answer.get("version")

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            return {"absent": f"the worker ended with status {self.process.wait()}"}
        return json.loads(answer)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
    }


def write(name: str, result: dict[str, Any], markdown: str) -> None:
    """benchmarks/results/<name>.json and .md; also printed."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(markdown)
    print(markdown)
