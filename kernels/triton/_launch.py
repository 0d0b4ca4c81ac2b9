"""Which of a kernel's shipped configurations runs, and how operands are handed over.

Nothing is tuned unasked: the first configuration that fits the device is the default, and what
`trustbench tune` found on this card (see trustbench.tuned) goes before it.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import triton

from trustbench import tuned
from trustbench.kernels.triton._matmul import precision


class Shipped(Protocol):
    """A configuration that a kernel ships with."""

    def shared(self, item: int) -> int:
        """About the bytes of shared memory that it needs, for operands of `item` bytes."""
        ...


C = TypeVar("C", bound=Shipped)


class Config(NamedTuple):
    """Tile sizes (constants of the kernel), warps and pipeline stages."""

    tile: dict[str, int]
    warps: int
    stages: int

    def shared(self, item: int) -> int:
        """About the shared memory of a matmul tile with operands of `item` bytes."""
        t = self.tile
        return self.stages * (t["BM"] + t["BN"]) * t["BK"] * item


def tile(BM: int, BN: int, BK: int) -> dict[str, int]:
    """The constants of a matmul tile."""
    return {"BM": BM, "BN": BN, "BK": BK, "GROUP": 8}


@cache
def _shared_memory(index: int) -> int:
    return torch.cuda.get_device_properties(index).shared_memory_per_block_optin


def chosen(name: str, configs: Sequence[C], device: torch.device, item: int = 2, **sizes: int) -> C:
    """The tuned configuration for these sizes, or the first that fits the device.

    item: bytes of an operand's element.
    """
    place = tuned.place(name, device, sizes)
    if place is not None and place < len(configs):
        return configs[place]
    if device.type != "cuda":
        return configs[0]
    limit = _shared_memory(device.index or 0)
    return next((c for c in configs if c.shared(item) <= limit), configs[-1])


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


def matmul(
    name: str, configs: Sequence[Config], tf32: Config, ieee: Config, x: torch.Tensor, W: torch.Tensor
) -> tuple[Config, tuple[Any, Any], bool]:
    """(configuration, (x, W), whether they are descriptors) of x W^T in bf16, TF32 or fp32."""
    if x.dtype != torch.bfloat16:
        return (ieee if precision(x) == "ieee" else tf32), (x, W), False
    config = chosen(name, configs, x.device, N=len(x), d=x.shape[1], F=len(W))
    *operands, tma = descriptors(config, x, W)
    return config, (operands[0], operands[1]), tma


class Row(NamedTuple):
    """How programs hold whole rows of d numbers: BD of them, U rows at a time, on so many warps."""

    BD: int
    U: int
    warps: int

    def shared(self, item: int) -> int:
        """Next to nothing: rows are held in registers."""
        return 0


def row_shape(d: int, at_once: int = 32) -> Row:
    """8 numbers a thread (16 bytes of bf16) up to d = 4096, then 16; U for `at_once` a thread."""
    if d > 16384:
        raise NotImplementedError(f"d_in={d}: the GPU kernels hold whole rows of at most 16384")
    BD = max(triton.next_power_of_2(d), 16)
    warps = 32 if BD == 16384 else min(max(BD // 256, 1), 16)
    return Row(BD, max(1, min(8, at_once * 32 * warps // BD)), warps)


def row_options(d: int) -> tuple[Row, ...]:
    """What is shipped for rows of d numbers: the default, and twice as many rows at a time.

    Longer rows have the default alone: they fill the registers, and only what is guarded ships.
    """
    usual = row_shape(d)
    return (usual, usual._replace(U=2 * usual.U)) if d <= 1024 and usual.U <= 4 else (usual,)


def tuned_row(name: str, device: torch.device, d: int) -> Row:
    """The tuned or default choice of a kernel that holds rows."""
    return chosen(name, row_options(d), device, d=d)
