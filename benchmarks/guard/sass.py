"""What a GPU kernel's machine code is made of, as NVIDIA's disassemblers print it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections import Counter
from pathlib import Path

# "        /*0080*/               @P0 EXIT ;", where nvdisasm and cuobjdump agree.
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.M)
_CLASSES = (
    ("matmul", r"\w*MMA"),
    ("spills", r"LDL|STL"),
    ("shared accesses", r"LDS|STS|LDSM|STSM|ATOMS"),
    ("global accesses", r"LDG|STG|LDGSTS|LD|ST|RED|REDG|ATOM|ATOMG|UTMA\w*|UBLK\w*"),
    ("special", r"MUFU"),
    ("control", r"BR\w*|BS\w*|BSYNC|BAR|BPT|EXIT|RET|CALL|SYNCS|\w*DEPBAR|MEMBAR|FENCE|"
                r"\w*ERRBAR|UTCBAR|CCTL\w*|WARP\w*|NANOSLEEP|ELECT"),
    ("float", r"F(?!LO)\w*|H\w*|D(?:ADD|MUL|FMA|SETP)|I2F\w*"),
)  # fmt: skip
_PATTERNS = [(name, re.compile(rf"(?:{pattern})$")) for name, pattern in _CLASSES]
NAMES = ["instructions", *(name for name, _ in _CLASSES), "other"]


def tools() -> Path | None:
    """Where Triton keeps the disassemblers that it brings along."""
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "backends" / "nvidia" / "bin"


def output(*command: object) -> str:
    """What a tool prints."""
    words = [str(part) for part in command]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def mix(listing: str) -> dict[str, int]:
    """How many instructions of each class a kernel has, without the padding behind it.

    `matmul`: on tensor cores; `spills`: of registers to local memory; `special`: roots and
    exponentials; `control`: jumps, barriers and waits; `other`: integers, moves, shuffles.
    """
    found = Counter({name: 0 for name in NAMES})
    for opcode in opcodes(listing):
        found["instructions"] += 1
        found[_class_of(opcode)] += 1
    return dict(found)


def opcodes(listing: str) -> list[str]:
    """The instructions without their modifiers, in order."""
    return [opcode for opcode in _INSTRUCTION.findall(listing) if opcode != "NOP"]


def _class_of(opcode: str) -> str:
    for name, pattern in _PATTERNS:
        if pattern.match(opcode):
            return name
    return NAMES[-1]
