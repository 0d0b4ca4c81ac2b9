"""Code that counts the instructions it executes: what CMake runs g++ through (CXX_COMPILER_LAUNCHER).

A basic block is a run of instructions that begins at a label or after a jump: all of it runs, or
nothing. So one addition at its beginning counts it, and a program counts itself in milliseconds, with
any instruction set: valgrind knows no AVX-512, many virtual machines have no counters, and stepping
takes microseconds an instruction. The compiler's own instructions stay as they are, with flags and
red zone; the assembler's padding is not counted.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable

COUNTER = "guard_instructions"
_LABEL = re.compile(r"[\w.$]+:")
_INSTRUCTION = re.compile(r"\t(?:notrack )?([a-z]\w*)")
_COUNT = (
    "\tleaq\t-128(%rsp), %rsp\n\tpushfq\n\taddq\t${}, "
    + COUNTER
    + "(%rip)\n\tpopfq\n\tleaq\t128(%rsp), %rsp\n"
)


def counted(assembly: str) -> str:
    """x86-64 assembly by GCC, in AT&T syntax, that adds what it executes to `COUNTER`."""
    return "".join(_counted(assembly.splitlines(keepends=True)))


def _counted(lines: Iterable[str]) -> Iterable[str]:
    block: list[str] = []  # lines since the block's first instruction
    size = 0
    for line in lines:
        found = _INSTRUCTION.match(line)
        if found is None and _LABEL.match(line):
            yield from _closed(block, size)
            block, size = [], 0
        if found is None and not block:
            yield line
            continue
        block.append(line)
        size += found is not None
        if found and found[1].startswith("j"):
            yield from _closed(block, size)
            block, size = [], 0
    yield from _closed(block, size)


def _closed(block: list[str], size: int) -> Iterable[str]:
    if size:
        yield _COUNT.format(size)
    yield from block


def compile_counted(command: list[str]) -> None:
    """Run a compiler's command, "... -o OBJECT -c SOURCE", with its assembly counted on the way."""
    place = command.index("-o") + 1
    to_assembly = ["-S" if word == "-c" else word for word in command]
    to_assembly[place] = "-"
    made = subprocess.run(to_assembly, stdout=subprocess.PIPE, text=True, check=True)
    assemble = [command[0], "-x", "assembler", "-c", "-", "-o", command[place]]
    subprocess.run(assemble, input=counted(made.stdout), text=True, check=True)


if __name__ == "__main__":
    try:
        compile_counted(sys.argv[1:])
    except subprocess.CalledProcessError as error:  # the compiler has said why
        sys.exit(error.returncode)
