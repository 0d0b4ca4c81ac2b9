"""Compile every shipped Triton kernel with no GPU, and read what the machine code needs.

    python -m benchmarks.guard.triton [--kernel NAME ...] > resources.json

One process compiles for all targets (in worker processes: Triton must not run in its interpreter
there). Figures come from the tools that Triton carries: registers and stack from cuobjdump, the
instructions from nvdisasm.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.guard import sass

Place = tuple[str, int]  # a module of the kernels, and which of its BUILDS


def builds() -> Iterator[Place]:
    """Every shipped configuration."""
    import trustbench.kernels.triton as package

    for module in pkgutil.iter_modules(package.__path__):
        found = importlib.import_module(f"{package.__name__}.{module.name}")
        for place in range(len(getattr(found, "BUILDS", ()))):
            yield module.name, place


def build_of(place: Place) -> Any:
    """What is shipped there."""
    return importlib.import_module(f"trustbench.kernels.triton.{place[0]}").BUILDS[place[1]]


def measure(place: Place, target: int) -> dict[str, Any]:
    """Compile one configuration for one target."""
    warnings.simplefilter("ignore")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    build = build_of(place)
    fixed = dict(build.constants) | {n: None for n, kind in build.signature.items() if kind is None}
    names = build.kernel.arg_names
    kinds = {n: "constexpr" if n in fixed else build.signature[n] for n in names}
    # Tensors come from torch's allocator: aligned. So are the widths in what is measured.
    aligned = [n for n in names if kinds[n].startswith("*") or n in ("d", "d_out", "F")]
    source = ASTSource(
        fn=build.kernel,
        signature=kinds,
        constexprs={(names.index(n),): value for n, value in fixed.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": build.warps, "num_stages": build.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    tools = sass.tools()
    assert tools is not None  # Triton is here
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = sass.output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        listing = sass.output(tools / "nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return {
        "module": place[0],
        "name": build.name,
        "kernel": build.kernel.fn.__name__,
        "target": target,
        "registers": int(found[1]),
        "stack": int(found[2]),
        "shared": compiled.metadata.shared,
        "wgmma": sass.opcodes(listing).count("HGMMA"),
        "mix": sass.mix(listing),
    }


def version() -> str:
    """What the figures hold for: Triton brings its compiler along."""
    return importlib.metadata.version("triton").partition("+")[0]


def named(figures: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """What is recorded of every kernel, by "MODULE, KERNEL, BUILD, sm_NN"."""
    return {
        f"{f['module']}, {f['kernel']}, {f['name']}, sm_{f['target']}": {
            name: f[name] for name in ("registers", "stack", "shared")
        }
        | f["mix"]
        for f in figures
    }


def measured() -> list[dict[str, Any]]:
    """Every figure, compiled in a process without the interpreter."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.guard.triton"],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def main() -> None:
    """Print the figures of every configuration for every target it is shipped for, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", action="append")
    only = parser.parse_args().kernel
    jobs = [
        (place, target)
        for place in builds()
        if only is None or place[0] in only
        for target in build_of(place).targets
    ]
    with ProcessPoolExecutor(min(len(os.sched_getaffinity(0)), 8), get_context("spawn")) as pool:
        print(json.dumps(list(pool.map(measure, *zip(*jobs, strict=True))), indent=1))


if __name__ == "__main__":
    main()
