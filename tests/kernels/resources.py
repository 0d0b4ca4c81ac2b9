"""Compile every shipped kernel with no GPU, and read what the machine code needs.

    python -m tests.kernels.resources [--kernel NAME ...] > resources.json

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

from benchmarks.guard import sass

TARGETS = (80, 90, 100)


def builds() -> Iterator[tuple[str, int]]:
    """(module, place in its BUILDS) of every shipped configuration."""
    import trustbench.kernels.triton as package

    for module in pkgutil.iter_modules(package.__path__):
        found = importlib.import_module(f"{package.__name__}.{module.name}")
        for place in range(len(getattr(found, "BUILDS", ()))):
            yield module.name, place


def measure(module: str, place: int, target: int) -> dict[str, object]:
    """Compile one configuration for one target."""
    warnings.simplefilter("ignore")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    build = importlib.import_module(f"trustbench.kernels.triton.{module}").BUILDS[place]
    fixed = dict(build.constants) | {n: None for n, kind in build.signature.items() if kind is None}
    names = build.kernel.arg_names
    kinds = {n: "constexpr" if n in fixed else build.signature[n] for n in names}
    # Tensors come from torch's allocator: aligned. So are the widths in what is measured.
    aligned = [n for n in names if kinds[n].startswith("*") or n in ("d", "F")]
    source = ASTSource(
        fn=build.kernel,
        signature=kinds,
        constexprs={(names.index(n),): value for n, value in fixed.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": build.warps, "num_stages": build.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    code = compiled.asm["cubin"]
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        listing = _output(tools / "nvdisasm", "-c", file.name)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    opcodes = sass.opcodes(listing)
    return {
        "module": module,
        "name": build.name,
        "kernel": build.kernel.fn.__name__,
        "target": target,
        "registers": registers,
        "stack": stack,
        "shared": compiled.metadata.shared,
        "wgmma": opcodes.count("HGMMA"),
        "mix": sass.mix(listing),
    }


def version() -> str:
    """What the figures hold for: Triton brings its compiler along."""
    return importlib.metadata.version("triton").partition("+")[0]


def named(figures: list[dict]) -> dict[str, dict[str, int]]:
    """What is recorded of every kernel, by "MODULE, KERNEL, BUILD, sm_NN"."""
    return {
        f"{f['module']}, {f['kernel']}, {f['name']}, sm_{f['target']}": {
            name: f[name] for name in ("registers", "stack", "shared")
        }
        | f["mix"]
        for f in figures
    }


def measured() -> list[dict]:
    """Every figure, compiled in a process without the interpreter."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.resources"],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def _output(*command: object) -> str:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=True
    ).stdout


def measure_all(only: list[str] | None = None) -> list[dict[str, object]]:
    """Every configuration for every target it is shipped for."""
    jobs = []
    for module, place in builds():
        build = importlib.import_module(f"trustbench.kernels.triton.{module}").BUILDS[place]
        if only is None or module in only:
            jobs += [(module, place, target) for target in build.targets]
    with ProcessPoolExecutor(min(len(os.sched_getaffinity(0)), 8), get_context("spawn")) as pool:
        return list(pool.map(measure, *zip(*jobs, strict=True)))


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", action="append")
    print(json.dumps(measure_all(parser.parse_args().kernel), indent=1))


if __name__ == "__main__":
    main()
