"""The contenders of benchmarks/peers in this process, for a device whose clock is in this process."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

_PEERS = str(Path(__file__).parents[1] / "peers")


def of(job: str) -> dict[str, type[Any]]:
    """{name: class} of one job. Its modules find each other as in a worker: in their own folder."""
    sys.path.insert(0, _PEERS)
    try:
        return importlib.import_module(job).CONTENDERS
    finally:
        sys.path.remove(_PEERS)
