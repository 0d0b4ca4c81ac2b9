"""The buffer's C++ core under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

`pytest tests/buffer/test_sanitizers.py` is the target; the compiler must have their libraries.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = (
    *(f"buffer/{name}" for name in ("pool", "tiers", "spill_file", "slots", "host_backend")),
    "kernels/rows_cpu", "parallel",
)  # fmt: skip
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here: the sanitizers need one")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_core_holds_under(sanitizer, tmp_path):
    program = tmp_path / "stress"
    sources = [f"csrc/{name}.cpp" for name in CORE]
    build = subprocess.run(
        [
            COMPILER, "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-psabi",
            f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-DTB_ISA=portable", "-Icsrc",
            *sources, "tests/buffer/native/stress.cpp", "-o", str(program), "-pthread", "-ldl",
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert build.returncode == 0, build.stderr
    (tmp_path / "spill").mkdir()
    run = subprocess.run([program, tmp_path / "spill"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stdout == "held\n", run.stderr
