"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trustbench import __version__
from trustbench.ops import dispatch

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def machine() -> dict[str, Any]:
    """Date, processor, threads, versions and commit ("+" where the checkout differs from it)."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!README.md")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": model,
        "isa": dispatch.native().isa(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "trustbench": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if changed else ""),
    }


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=HERE.parent, capture_output=True, text=True)
    return found.stdout.strip()
