"""Where results came from: what `<name>.about.json` holds."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from trustbench import __version__

_ROOT = Path(__file__).parents[2]
_LIBRARIES = ("torch", "numpy", "transformers", "tokenizers", "triton")


def about(
    config: Any = None,
    *,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """What to write beside a table: config, commit, versions, device, seed, seconds.

    Parameters
    ----------
    config : mapping, or an object with to_dict()
    device : torch.device or str
        Where it was computed; the answer names the processor or the card.
    seed : int
    seconds : float
        How long it took.
    """
    plain = config if config is None or isinstance(config, Mapping) else config.to_dict()
    return {
        "config": plain,
        "commit": commit(),
        "versions": versions(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "seconds": None if seconds is None else round(seconds, 3),
    }


def versions() -> dict[str, str]:
    """The versions of trustbench, Python, and the libraries that are there."""
    found = {"trustbench": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The checkout's commit, with "+" where files differ from it; None outside a checkout."""
    if not (_ROOT / ".git").exists():  # an installation inside somebody else's checkout is none
        return None
    head, changed = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "-uno")
    return None if head is None else head + ("+" if changed else "")


def _git(*arguments: str) -> str | None:
    try:
        ran = subprocess.run(
            ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return ran.stdout.strip()


def device_name(device: torch.device | str) -> str:
    """The name of the card, or of the processor."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def model_name(model: str | os.PathLike[str]) -> str:
    """What a page calls a model: its name on the hub, or the last part of its path.

    >>> model_name("EleutherAI/pythia-70m")
    'EleutherAI/pythia-70m'
    >>> model_name("/home/me/models/small")
    'small'
    """
    path = Path(model)
    if cached := re.search(r"models--([^/]+)/snapshots/", path.as_posix()):  # hub's cache
        return cached[1].replace("--", "/", 1)
    is_path = path.is_absolute() or path.exists() or len(path.parts) > 2 or ".." in path.parts
    return path.resolve().name if is_path else str(model)
