"""What a kernel is compiled as, and the resources it may use: data for the ahead-of-time guard."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Limits(NamedTuple):
    """The most that a build may use, with Triton 3.6 and 3.9; what a test holds it to."""

    registers: int  # a thread, on any target
    shared: int = 32 * 1024  # bytes a program, on any target
    spills: Mapping[int, int] = {}  # loads and stores of local memory, by target; none elsewhere


class Build(NamedTuple):
    """One shipped configuration of a kernel."""

    name: str
    kernel: Any  # a triton.jit function
    signature: dict[str, str | None]  # of every argument that is no constexpr; None: not given
    constants: dict[str, Any]
    warps: int
    limits: Limits
    stages: int = 3
    targets: tuple[int, ...] = (80, 90, 100)  # compute capability, times ten
    matmul: bool = False  # must use the tensor cores: wgmma on sm_90
