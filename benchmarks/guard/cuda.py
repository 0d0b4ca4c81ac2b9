"""What the kernels of trustbench._cuda need on every architecture that the module was built for."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from benchmarks.guard import sass


def module() -> Path | None:
    """The module, where it was built."""
    found = importlib.util.find_spec("trustbench._cuda")
    return Path(found.origin) if found and found.origin else None


def compiler(built: Path) -> str:
    """What the figures hold for: the release of nvcc, as its machine code says it."""
    found = re.search(rb"Cuda compilation tools, release ([\d.]+)", built.read_bytes())
    assert found, f"{built} does not say which nvcc made it"
    return f"nvcc {found[1].decode()}"


def measure(built: Path, tools: Path) -> dict[str, dict[str, int]]:
    """Registers, stack, shared memory and the mix of instructions, by "KERNEL, sm_NN"."""
    usage = _by_architecture(sass.output(tools / "cuobjdump", "--dump-resource-usage", built))
    listing = _by_architecture(sass.output(tools / "cuobjdump", "--dump-sass", built))
    found = {}
    for arch in usage.keys() & listing.keys():
        needs = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage[arch])
        bodies = dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", listing[arch], re.S))
        for symbol, registers, stack, shared in needs:
            figures = {"registers": int(registers), "stack": int(stack), "shared": int(shared)}
            found[f"{_readable(symbol)}, {arch}"] = figures | sass.mix(bodies[symbol])
    return found


def _by_architecture(text: str) -> dict[str, str]:
    """What follows every "arch = sm_NN"."""
    parts = re.split(r"^arch = (sm_\w+)$", text, flags=re.M)
    found: dict[str, str] = {}
    for arch, part in zip(parts[1::2], parts[2::2], strict=True):
        found[arch] = found.get(arch, "") + part
    return found


def _readable(symbol: str) -> str:
    """A kernel's name with its template's arguments."""
    name = sass.output("c++filt", symbol).strip()
    return re.sub(r"\(.*", "", name).removeprefix("void ").replace("tb::", "")
