"""How many instructions the C++ kernels execute, for every instruction set this processor has.

They are compiled with the flags of CMakeLists.txt, made to count themselves (blocks.py) and linked
with `driver/`, which calls every one on a small input. The figures depend on the sources and on the
compiler, and on nothing else: two runs give the same ones.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.guard.blocks import counted

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
DRIVER = Path(__file__).parent / "driver"
FOLDER = ROOT / "build" / "guard"
# What CMake's Release build of a module adds to the flags of CMakeLists.txt; and no protections,
# which some distributions' compilers add.
_COMMON = ["-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden"]
_COMMON += ["-fcf-protection=none", "-fno-stack-protector", "-U_FORTIFY_SOURCE"]
# memory.cpp defines the functions that its loops would be turned into.
_PLAIN_LOOPS = ["-fno-builtin", "-fno-tree-loop-distribute-patterns"]
_NEEDS = {
    "portable": set(),
    "avx2": {"avx2", "fma"},
    "avx512": {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
}
_NEEDS["avx512bf16"] = _NEEDS["avx512"] | {"avx512_bf16"}


def compiler() -> str:
    """What the figures hold for: GCC and its major version."""
    if platform.machine() != "x86_64" or not shutil.which("g++"):
        raise SystemExit("the regression guard compiles and counts: it needs g++ on x86-64")
    return f"g++ {_run('g++', '-dumpversion').strip().partition('.')[0]}"


def isas() -> list[str]:
    """The instruction sets that this processor runs."""
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    has = set(found[1].split()) if found else set()
    return [isa for isa, needs in _NEEDS.items() if needs <= has]


def count(csrc: Path = CSRC) -> dict[str, int]:
    """Instructions of every case with every instruction set, by "CASE, ISA"."""
    build = Build(csrc)
    found = {}
    for isa, program in build.programs(isas()).items():
        for line in _run(program).splitlines():
            name, instructions = line.split("\t")
            found[f"{name}, {isa}"] = int(instructions)
    if csrc == CSRC:
        build.sweep()
    return found


class Build:
    """The drivers of one copy of csrc/. An object is compiled once for its text."""

    def __init__(self, csrc: Path) -> None:
        self.csrc = csrc
        FOLDER.mkdir(parents=True, exist_ok=True)
        self.made: set[Path] = set()
        self.flags, self.sets, self.core = _said_by_cmake()
        read = [*sorted(csrc.glob("*.h")), *sorted(DRIVER.glob("*.h"))]
        read += [Path(__file__).with_name("blocks.py")]
        self.seed = "".join(path.read_text() for path in read) + _run("g++", "--version")

    def programs(self, wanted: list[str]) -> dict[str, Path]:
        """The driver of every instruction set asked for."""
        core = [self.csrc / Path(name).name for name in self.core]
        core += [self.csrc / "parallel.cpp", self.csrc / "host_backend.cpp"]
        cases = sorted(DRIVER.glob("*_cases.cpp"))
        shared = [(path, []) for path in core]
        shared += [(path, [f"-I{self.csrc}"]) for path in cases]
        shared += [(DRIVER / "memory.cpp", _PLAIN_LOOPS)]
        kernels = sorted(self.csrc.glob("*_cpu.cpp"))
        jobs = {"": shared}
        for isa in wanted:
            define = f"-DTB_ISA={isa}"
            jobs[isa] = [(path, [*self.flags, *self.sets[isa], define]) for path in kernels]
            jobs[isa] += [(DRIVER / "main.cpp", [define, f"-I{self.csrc}"])]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            objects = {
                isa: [pool.submit(self._object, path, flags) for path, flags in sources]
                for isa, sources in jobs.items()
            }
            return {
                isa: self._linked(isa, [o.result() for o in [*objects[isa], *objects[""]]])
                for isa in wanted
            }

    def _object(self, source: Path, flags: list[str]) -> Path:
        text = "\0".join([self.seed, source.read_text(), *_COMMON, *map(self._placeless, flags)])
        made = FOLDER / f"{source.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.o"
        if not made.exists():
            assembly = _run("g++", *_COMMON, *flags, "-S", source, "-o", "-")
            draft = made.with_suffix(f".{os.getpid()}")
            _run("g++", "-x", "assembler", "-c", "-", "-o", draft, given=counted(assembly))
            draft.replace(made)
        self.made.add(made)
        return made

    def _placeless(self, flag: str) -> str:
        return flag.replace(str(self.csrc), "csrc")

    def _linked(self, isa: str, objects: list[Path]) -> Path:
        text = "\0".join(path.name for path in objects)
        program = FOLDER / f"driver-{isa}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        if not program.exists():
            draft = program.with_suffix(f".{os.getpid()}")
            _run("g++", *objects, "-o", draft, "-pthread", "-ldl")
            draft.replace(program)
        self.made.add(program)
        return program

    def sweep(self) -> None:
        """Remove what earlier states of the sources left behind."""
        for path in set(FOLDER.iterdir()) - self.made:
            path.unlink()


def _said_by_cmake() -> tuple[list[str], dict[str, list[str]], list[str]]:
    """By CMakeLists.txt: flags of all kernels, of each instruction set, and the buffer's sources."""
    text = (ROOT / "CMakeLists.txt").read_text()
    options = re.search(
        r"target_compile_options\(kernels_\$\{name\} PRIVATE(.*?)\$\{ARGN\}\)", text, re.S
    )
    said = {name: value.split() for name, value in re.findall(r"set\((\w+) ([^)]*)\)", text)}
    sets = {}
    for isa, flags in re.findall(r"add_isa\((\w+)([^)]*)\)", text):
        words = [said[flag[2:-1]] if flag.startswith("${") else [flag] for flag in flags.split()]
        sets[isa] = [flag for word in words for flag in word]
    assert options and set(sets) == set(_NEEDS), "CMakeLists.txt says its flags in another way now"
    return options[1].split(), sets, said["BUFFER"]


def _run(*command: object, given: str | None = None) -> str:
    run = subprocess.run([str(part) for part in command], input=given, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{command[0]} failed:\n{run.stderr[-3000:]}")
    return run.stdout
