"""What `trustbench tune` measured on this machine, in a file that later processes read.

Keys name what was measured, the device, the versions and the sizes; values are numbers: the place of
the fastest configuration among those a kernel ships, or a measured figure.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from trustbench import files

_forced: dict[str, int] = {}


def cache_file() -> Path:
    """$XDG_CACHE_HOME/trustbench/tuned.json, or ~/.cache/trustbench/tuned.json."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "trustbench" / "tuned.json"


@cache
def _known() -> dict[str, float]:
    path = cache_file()
    return files.read_json(path) if path.is_file() else {}


@cache
def _card(index: int) -> str:
    name = torch.cuda.get_device_properties(index).name
    return f"{name}, torch {torch.__version__}, triton {version('triton')}"


def _key(name: str, device: torch.device, sizes: dict[str, int]) -> str:
    card = _card(device.index or 0) if device.type == "cuda" else "interpreter"
    # Sizes by their power of two: a last batch that is a little smaller is not another case.
    rounded = ", ".join(f"{n} {max(size, 1).bit_length()}" for n, size in sizes.items())
    return f"{name}; {card}; {rounded}"


def figure(name: str, device: torch.device, **sizes: int) -> float | None:
    """What was measured for these sizes, if it was."""
    return _known().get(_key(name, device, sizes))


def place(name: str, device: torch.device, sizes: dict[str, int]) -> int | None:
    """The configuration to run: the one being timed, or the one that was fastest."""
    if name in _forced:
        return _forced[name]
    if device.type != "cuda":
        return None
    found = figure(name, device, **sizes)
    return None if found is None else int(found)


def remember(name: str, device: torch.device, value: float, **sizes: int) -> None:
    """Write one figure down."""
    files.atomic_write_json(cache_file(), _known() | {_key(name, device, sizes): value})
    _known.cache_clear()


def fastest(times: Sequence[float]) -> int:
    """The place of the least time; the first of equals."""
    return min(range(len(times)), key=times.__getitem__)


@contextmanager
def forced(name: str, place: int) -> Iterator[None]:
    """Inside the block, kernel `name` runs its configuration number `place`."""
    _forced[name] = place
    try:
        yield
    finally:
        del _forced[name]
