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
from typing import Literal, get_args

import torch
from torch import Tensor

from trustbench.errors import bad

Choice = Literal["auto", "reference", "cpp", "triton"]
_choice: ContextVar[Choice] = ContextVar("trustbench_ops", default="auto")
_TRITON_HINT = "`pip install triton` (torch's CUDA builds bring it)"
_SLOW = "{} runs its slow PyTorch reference"
_NVCC_HINT = "reinstall trustbench where nvcc is found"
_BUILD_HINT = "build it with `pip install -e .` in a checkout, or reinstall trustbench"


@contextmanager
def use(name: Choice) -> Iterator[None]:
    """Force one implementation of every op inside the block.

    "reference": plain PyTorch, the definition. "cpp": the C++ kernels (fp32 and bf16 on the CPU).
    "triton": the Triton kernels (fp32 and bf16 on a CUDA device; on the CPU under Triton's
    interpreter, which TRITON_INTERPRET=1 turns on before Triton is imported: slow, for tests).
    "auto": C++ on the CPU and Triton on CUDA devices for fp32 and bf16, the reference for float64.
    """
    if not isinstance(name, str) or name not in get_args(Choice):
        raise bad("name", name, "'auto', 'reference', 'cpp' or 'triton'")
    if name == "cpp":
        native()
    if name == "triton":
        triton("decode")
    token = _choice.set(name)
    try:
        yield
    finally:
        _choice.reset(token)


@cache
def _load(name: str) -> ModuleType | None:
    """A module of the package, or None where it, or the Triton it stands on, is not there."""
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


def cuda_native() -> ModuleType | None:
    """trustbench._cuda; None, after one warning by name, where it was not built."""
    module = _load("_cuda")
    if module is None:
        instead = "ActivationBuffer moves rows by torch's own indexing"
        _warn_missing("trustbench._cuda is not built", instead, _NVCC_HINT)
    return module


def triton(op: str) -> ModuleType:
    """The Triton kernels of an op, or an ImportError that says how to get them."""
    module = _load(f"kernels.triton.{op}")
    if module is None:
        raise ImportError(f"Triton is not installed: {_TRITON_HINT}")
    return module


@cache
def _warn_missing(what: str, instead: str, hint: str) -> None:
    warnings.warn(f"{what}: {instead}; {hint}", RuntimeWarning, stacklevel=3)


def implementation(
    op: str, tensor: Tensor, *, cpp: bool = True
) -> Literal["reference", "cpp", "triton"]:
    """What runs `op` on this tensor now; cpp=False: it has no C++ kernel (the reference is used)."""
    choice, device = _choice.get(), tensor.device.type
    if choice == "reference":
        return "reference"
    if choice == "cpp" and device == "cuda":
        raise bad("device", str(tensor.device), "the CPU for the C++ kernels")
    if choice == "triton" and device != "cuda" and not _interpreted():
        raise bad("device", str(tensor.device), "a CUDA device, or TRITON_INTERPRET=1 set beforehand")
    if tensor.dtype == torch.float64:
        if choice != "auto":
            raise bad("dtype", tensor.dtype, f"float32 or bfloat16 for the {choice} kernel of {op}")
        return "reference"
    if choice == "triton" or (choice == "auto" and device == "cuda"):
        if choice == "auto" and _load(f"kernels.triton.{op}") is None:
            _warn_missing("Triton is not installed", _SLOW.format(op), _TRITON_HINT)
            return "reference"
        triton(op)
        return "triton"
    if not cpp:
        if choice == "cpp":
            raise bad("name", "cpp", f"'reference' or 'triton': {op} has no C++ kernel")
        return "reference"
    if choice == "auto" and _load("_C") is None:
        _warn_missing("trustbench._C is not built", _SLOW.format(op), _BUILD_HINT)
        return "reference"
    native()
    return "cpp"


def shipped(name: str, d: int) -> int:
    """How many configurations the Triton kernels called `name` in what is tuned ship with."""
    if name in ("encode_topk", "relu_dense"):
        return len(triton(name).CONFIGS)
    if name == "collect":  # of encode_relu and encode_batchtopk
        return len(triton("_collect").CONFIGS)
    return len(triton("_launch").row_options(d))


def _interpreted() -> bool:
    import triton as library

    return bool(library.knobs.runtime.interpret)


def has_fast_bf16() -> bool:
    """Whether this processor multiplies bfloat16 faster than fp32, by the kernels that are built."""
    module = _load("_C")
    return module is not None and module.isa() == "avx512bf16"


def implementations() -> dict[str, str]:
    """What each device has: for `trustbench info`."""
    module = _load("_C")
    cpu = f"cpp ({module.isa()})" if module else "reference only: trustbench._C is not built"
    kernels = _load("kernels.triton.decode")
    cuda = "triton" if kernels else "reference only: Triton is not installed"
    return {"cpu": cpu, "cuda": cuda}
