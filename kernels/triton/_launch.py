"""Which of a kernel's shipped configurations runs, and how operands are handed over.

Nothing is tuned unasked: the first configuration that fits the device is the default. `tune` times
them all and writes the winner to a file, keyed by device and versions, that later processes read.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from trustbench import files


class Config(NamedTuple):
    """Tile sizes (constants of the kernel), warps and pipeline stages."""

    tile: dict[str, int]
    warps: int
    stages: int

    def shared(self, item: int = 2) -> int:
        """About the shared memory of a matmul tile with operands of `item` bytes."""
        t = self.tile
        return self.stages * (t["BM"] + t["BN"]) * t["BK"] * item


def tile(BM: int, BN: int, BK: int) -> dict[str, int]:
    """The constants of a matmul tile."""
    return {"BM": BM, "BN": BN, "BK": BK, "GROUP": 8}


def cache_file() -> Path:
    """Where tuned choices are kept: $XDG_CACHE_HOME/trustbench/tuned.json."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "trustbench" / "tuned.json"


@cache
def _tuned() -> dict[str, int]:
    path = cache_file()
    return files.read_json(path) if path.is_file() else {}


@cache
def _device(index: int) -> tuple[str, int]:
    """The key of a device and its versions, and the shared memory a program may have."""
    properties = torch.cuda.get_device_properties(index)
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    return f"{properties.name}, {versions}", properties.shared_memory_per_block_optin


def _key(name: str, device: str, sizes: dict[str, int]) -> str:
    # Sizes by their power of two: a last batch that is a little smaller is not another case.
    rounded = ", ".join(f"{n} {max(size, 1).bit_length()}" for n, size in sizes.items())
    return f"{name}; {device}; {rounded}"


def chosen(
    name: str, configs: Sequence[Config], device: torch.device, item: int = 2, **sizes: int
) -> Config:
    """The tuned configuration for these sizes, or the first that fits the device.

    item: bytes of an operand's element.
    """
    if device.type != "cuda":
        return configs[0]
    key, shared = _device(device.index or 0)
    place = _tuned().get(_key(name, key, sizes))
    if place is not None and place < len(configs):
        return configs[place]
    return next((c for c in configs if c.shared(item) <= shared), configs[-1])


def tune(
    name: str,
    configs: Sequence[Config],
    run: Callable[[Config], Any],
    device: torch.device,
    **sizes: int,
) -> list[float]:
    """Milliseconds of every configuration (inf: it does not run here); the best is remembered."""
    times = []
    for config in configs:
        try:
            times.append(triton.testing.do_bench(lambda c=config: run(c), return_mode="median"))
        except triton.runtime.errors.OutOfResources:
            times.append(float("inf"))
    key = _key(name, _device(device.index or 0)[0], sizes)
    known = dict(_tuned())
    known[key] = min(range(len(times)), key=times.__getitem__)
    files.atomic_write_json(cache_file(), known)
    _tuned.cache_clear()
    return times


def descriptors(config: Config, x: torch.Tensor, W: torch.Tensor) -> tuple[Any, Any, bool]:
    """(x, W, whether they are tensor descriptors): where the copy engine and the strides allow it."""
    row = x.shape[1] * x.element_size()
    able = x.device.type != "cuda" or torch.cuda.get_device_capability(x.device)[0] >= 9
    aligned = row % 16 == 0 and x.data_ptr() % 16 == 0 and W.data_ptr() % 16 == 0
    if not (able and aligned and len(x) and len(W)):
        return x, W, False
    from triton.tools.tensor_descriptor import TensorDescriptor

    t = config.tile
    made = (
        TensorDescriptor.from_tensor(tensor, [size, t["BK"]])
        for tensor, size in ((x, t["BM"]), (W, t["BN"]))
    )
    return *made, True


class Row(NamedTuple):
    """How programs hold whole rows of d numbers: BD of them, U rows at a time, on so many warps."""

    BD: int
    U: int
    warps: int


def row_shape(d: int, at_once: int = 32) -> Row:
    """8 numbers a thread (16 bytes of bf16) where that needs at most 16 warps; U for `at_once`."""
    if d > 16384:
        raise NotImplementedError(f"d_in={d}: the GPU kernels hold whole rows of at most 16384")
    BD = max(triton.next_power_of_2(d), 16)
    warps = min(max(BD // 256, 1), 16)
    return Row(BD, max(1, min(8, at_once * 32 * warps // BD)), warps)
