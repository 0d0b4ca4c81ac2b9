"""Which implementation of an op runs: by the tensor's device and dtype, or as asked for.

Nothing is chosen in silence: an implementation that was asked for and is missing raises, and a
missing native module is announced once, by name.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from trustbench.errors import bad

Choice = Literal["auto", "reference", "cpp"]
_choice: ContextVar[Choice] = ContextVar("trustbench_ops", default="auto")
_BUILD_HINT = "build it with `pip install -e .` in a checkout, or reinstall trustbench"


@contextmanager
def use(name: Choice) -> Iterator[None]:
    """Force one implementation of every op inside the block.

    "reference": plain PyTorch, the definition. "cpp": the C++ kernels (fp32 and bf16 on the CPU).
    "auto": C++ for fp32 and bf16 on the CPU, the reference for float64.
    """
    if name not in ("auto", "reference", "cpp"):
        raise bad("name", name, "'auto', 'reference' or 'cpp'")
    if name == "cpp":
        native()
    token = _choice.set(name)
    try:
        yield
    finally:
        _choice.reset(token)


@cache
def _load(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"trustbench.{name}")
    except ModuleNotFoundError:
        return None


def native() -> ModuleType:
    """trustbench._C, or an ImportError that says how to get it."""
    module = _load("_C")
    if module is None:
        raise ImportError(f"the native module trustbench._C is not built: {_BUILD_HINT}")
    return module


@cache
def _warn_missing(op: str) -> None:
    warnings.warn(
        f"trustbench._C is not built: {op} runs its slow PyTorch reference; {_BUILD_HINT}",
        RuntimeWarning,
        stacklevel=3,
    )


def implementation(op: str, tensor: Tensor) -> Literal["reference", "cpp"]:
    """What runs `op` on this tensor now."""
    choice = _choice.get()
    if choice == "reference":
        return "reference"
    if tensor.dtype == torch.float64:
        if choice == "cpp":
            raise bad("dtype", tensor.dtype, f"float32 or bfloat16 for the C++ kernel of {op}")
        return "reference"
    if choice == "auto" and _load("_C") is None:
        _warn_missing(op)
        return "reference"
    native()
    return "cpp"


def has_fast_bf16() -> bool:
    """Whether this processor multiplies bfloat16 faster than fp32, by the kernels that are built."""
    module = _load("_C")
    return module is not None and module.isa() == "avx512bf16"


def implementations() -> dict[str, str]:
    """What each device has: for `trustbench info`."""
    module = _load("_C")
    cpu = f"cpp ({module.isa()})" if module else "reference only: trustbench._C is not built"
    return {"cpu": cpu, "cuda": "none yet: ops on CUDA tensors raise NotImplementedError"}
