"""Assembly that counts the instructions it executes.

A basic block is a run of instructions that begins at a label or after a jump: all of it runs, or
nothing. So one addition at its beginning counts it, and a program counts itself in milliseconds, with
any instruction set: valgrind knows no AVX-512, many virtual machines have no counters, and stepping
takes microseconds an instruction. The compiler's own instructions stay as they are, with flags and
red zone; the assembler's padding is not counted.
"""

from __future__ import annotations

import re
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
