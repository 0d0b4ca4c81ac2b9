"""How many instructions the C++ kernels execute, for every instruction set this processor has.

CMake builds `driver/` with -DTRUSTBENCH_GUARD=ON: kernels with the flags of the modules, made to
count themselves (blocks.py), each called on a small input. The figures depend on the sources and on
the compiler, and on nothing else: two runs give the same ones.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from trustbench.ops import dispatch

ROOT = Path(__file__).parents[2]


def compiler() -> str:
    """What the figures hold for: GCC and its major version."""
    if platform.machine() != "x86_64" or not (shutil.which("g++") and shutil.which("cmake")):
        raise SystemExit("the guard compiles and counts: it needs cmake, and g++ on x86-64")
    return f"g++ {_run('g++', '-dumpversion').strip().partition('.')[0]}"


def isas() -> list[str]:
    """The instruction sets that this processor runs."""
    return dispatch.native().isa_names()


def count(root: Path = ROOT) -> dict[str, int]:
    """Instructions of every case with every instruction set, by "CASE, ISA"; root: of a checkout."""
    folder, found = build(root), {}
    for isa in isas():
        for line in _run(folder / f"driver_{isa}").splitlines():
            name, instructions = line.split("\t")
            found[f"{name}, {isa}"] = int(instructions)
    return found


def build(root: Path, kind: str = "ON") -> Path:
    """The folder with all drivers; kind "plain": that do not count."""
    folder = root / "build" / f"guard-{kind}"
    options = [f"-DTRUSTBENCH_GUARD={kind}", "-DCMAKE_CXX_COMPILER=g++"]
    if shutil.which("ninja"):
        options += ["-G", "Ninja"]
    _run("cmake", "-S", root, "-B", folder, *options)
    _run("cmake", "--build", folder, "--parallel", len(os.sched_getaffinity(0)))
    return folder


def _run(*command: object) -> str:
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{command[0]} failed:\n{run.stdout[-3000:]}{run.stderr[-3000:]}")
    return run.stdout
