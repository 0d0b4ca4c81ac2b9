"""info(): what this installation has, for bug reports."""

from __future__ import annotations

import importlib.metadata
import os
import pkgutil
import platform
from typing import Any

import torch

from trustbench import __version__, ops, waiting
from trustbench.ops import dispatch

# Functions of trustbench._C behind an op that has none of its own name.
_NATIVE = {"reconstruct": ("decode", "code_grad")}


def info(*, progress: bool = True) -> dict[str, Any]:
    """Versions, devices, native modules, and which implementation each op has.

    Parameters
    ----------
    progress : bool
        Print it, a line each.
    """
    found = _collect()
    if progress:
        width = max(map(len, found))
        print("\n".join(f"{name.ljust(width)}  {value}" for name, value in found.items()))
    return found


def _collect() -> dict[str, Any]:
    info: dict[str, Any] = {
        "trustbench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in ("numpy", "transformers", "tokenizers", "safetensors", "triton"):
        info[name] = _version(name)
    info["cpu"] = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    info["waiting threads"] = waiting.policy()
    native = _module("_C")
    if native is None:
        info["trustbench._C"] = "NOT BUILT: every op runs its slow PyTorch reference"
    else:
        names = ", ".join(native.isa_names())
        info["trustbench._C"] = f"built; runs {native.isa()} (this processor can: {names})"
    cuda = _module("_cuda")
    if cuda is None:
        info["trustbench._cuda"] = "not built (no CUDA toolkit at build time): CPU only"
    else:
        info["trustbench._cuda"] = f"built with CUDA {cuda.cuda_version / 1000:.1f}"
        try:
            devices = cuda.devices()
        except RuntimeError as error:
            devices = [f"not readable ({error})"]
        info["CUDA devices"] = devices or "none visible"
    info |= {f"ops on {device}": what for device, what in dispatch.implementations().items()}
    for name in _op_names():
        info[name] = ", ".join(f"{device}: {what}" for device, what in implementations(name).items())
    return info


def implementations(op: str) -> dict[str, str]:
    """What runs an op on fp32 and bf16 tensors of each device: "cpp", "triton" or "reference"."""
    native, kernels = _module("_C"), _module(f"kernels.triton.{op}")
    functions = _NATIVE.get(op, (op,))
    return {
        "cpu": "cpp" if all(hasattr(native, name) for name in functions) else "reference",
        "cuda": "triton" if kernels else "reference",
    }


def _op_names() -> list[str]:
    """Every op, as its file in trustbench/ops says it."""
    modules = (
        importlib.import_module(f"{ops.__name__}.{m.name}")
        for m in pkgutil.iter_modules(ops.__path__)
    )
    return [module.SPEC.name for module in modules if hasattr(module, "SPEC")]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"trustbench.{name}")
    except ImportError:
        return None
