"""The buffer's back end on a GPU (csrc/cuda/cuda_backend.cu), where there is none.

Its C++ is built over a pretended GPU (native/pretended_gpu.h), which does what a GPU may do, in an
order drawn by chance, and is compared with a sequential model and with the buffer on the CPU. Its
numbers are compared with torch's, and its kernels are compiled.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.buffer import mx8

ROOT = Path(__file__).parents[2]
NATIVE = Path("tests/buffer/native")
CORE = (
    *(f"buffer/{name}" for name in ("pool", "tiers", "spill_file", "slots", "host_backend")),
    "kernels/rows_cpu", "parallel",
)  # fmt: skip
SEEDS = {"plain": 250, "sanitized": 50}
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
_HOMES = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
_NVCCS = [os.environ.get("CUDACXX"), shutil.which("nvcc"), *(home / "bin/nvcc" for home in _HOMES)]
NVCC = next((Path(nvcc) for nvcc in _NVCCS if nvcc and Path(nvcc).is_file()), None)
_INCLUDES = [home / "include" for home in _HOMES]
if NVCC:
    _INCLUDES.append(NVCC.resolve().parents[1] / "include")
HEADERS = next((path for path in _INCLUDES if (path / "cuda_runtime.h").is_file()), None)

needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler here: the back end is built with one"
)
needs_headers = pytest.mark.skipif(
    HEADERS is None,
    reason="no CUDA headers in $CUDA_HOME, beside nvcc or in /usr/local/cuda: they are included",
)
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc here: it compiles the kernels")


def run(command: list[object]) -> subprocess.CompletedProcess[str]:
    # AddressSanitizer would move stack frames elsewhere, which fibres do not know.
    env = os.environ | {"ASAN_OPTIONS": "detect_stack_use_after_return=0"}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, env=env)


# "#pragma unroll" is nvcc's; vectors never cross the boundary of a shared library (psabi).
FLAGS = [
    COMPILER, "-std=c++17", "-O1", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-psabi",
    "-Wno-unknown-pragmas", "-DTB_ISA=portable", "-Icsrc", "-isystem", HEADERS,
]  # fmt: skip


def compiled(folder: Path, sources: list[Path], *options: str) -> list[Path]:
    """Their objects, made side by side."""
    objects = [folder / f"{source.stem}.o" for source in sources]
    pairs = zip(sources, objects, strict=True)
    steps = [[*FLAGS, *options, "-c", source, "-o", made] for source, made in pairs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(run, steps):
            assert result.returncode == 0, result.stderr
    return objects


def linked(target: Path, objects: list[Path], *options: str) -> Path:
    result = run([*FLAGS, *options, *objects, "-o", target, "-ldl"])
    assert result.returncode == 0, result.stderr
    return target


# ---------------------------------------------------------------- what it does


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """The buffer's core (test_sanitizers.py has it sanitized)."""
    sources = [Path(f"csrc/{name}.cpp") for name in CORE]
    return compiled(tmp_path_factory.mktemp("core"), sources)


@pytest.fixture(scope="module", params=SEEDS)
def program(request, core, tmp_path_factory):
    """The back end on the pretended GPU, and how many seeds it is tried with."""
    options = SANITIZED if request.param == "sanitized" else []
    folder = tmp_path_factory.mktemp(request.param)
    own = compiled(folder, [NATIVE / "cuda_backend.cpp", NATIVE / "cuda_pool.cpp"], *options)
    return linked(folder / "cuda_backend", [*core, *own], *options), SEEDS[request.param]


@needs_compiler
@needs_headers
def test_calls_in_any_order_give_what_the_model_gives(program):
    path, seeds = program
    result = run([path, "calls", 0, seeds - 1])
    assert result.returncode == 0 and result.stdout == "held\n", result.stderr


@needs_compiler
@needs_headers
def test_the_whole_buffer_gives_what_it_gives_on_the_cpu(program, tmp_path):
    result = run([program[0], "pools", tmp_path])
    assert result.returncode == 0 and result.stdout == "held\n", result.stderr
    assert not list(tmp_path.iterdir())  # no files are left


# ---------------------------------------------------------------- its numbers


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """csrc/cuda/cuda_numbers.cuh as a shared library."""
    folder = tmp_path_factory.mktemp("numbers")
    objects = compiled(folder, [NATIVE / "cuda_numbers.cpp"])
    return ctypes.CDLL(str(linked(folder / "numbers.so", objects, "-shared")))


def call(function, *arguments: Tensor | int) -> None:
    function(
        *(
            ctypes.c_void_p(given.data_ptr()) if isinstance(given, Tensor) else ctypes.c_int64(given)
            for given in arguments
        )
    )


def any_floats(count: int, below: int = 0x7F800000) -> Tensor:
    """Floats of any exponent, whose bits are uniform, both signs."""
    bits = torch.randint(below, (count,), dtype=torch.int32)
    return bits.view(torch.float32) * (2 * torch.randint(2, (count,)) - 1)


@needs_compiler
@needs_headers
def test_e4m3_is_torchs(numbers):
    every_bf16 = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).float()
    ties = ((mx8.E4M3[1:] + mx8.E4M3[:-1]) / 2).float()
    beside = [ties.nextafter(torch.tensor(to)) for to in (0.0, torch.inf)]
    x = torch.cat([every_bf16, mx8.E4M3.float(), ties, *beside, any_floats(2**20, 0x43E00001)])
    x = torch.cat([x, -x])
    x = x[x.abs() <= 448].contiguous()
    codes = torch.zeros(len(x), dtype=torch.uint8)
    call(numbers.to_e4m3, x, codes, len(x))
    assert torch.equal(codes, x.to(torch.float8_e4m3fn).view(torch.uint8))


@needs_compiler
@needs_headers
def test_bf16_is_torchs_and_what_is_rounded_to_infinity_is_not_finite(numbers):
    limits = torch.tensor([0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000], dtype=torch.int32)
    x = torch.cat([any_floats(2**20), limits.view(torch.float32)])
    narrow, finite = x.to(torch.bfloat16).zero_(), torch.zeros(len(x), dtype=torch.bool)
    call(numbers.to_bf16, x, narrow, finite, len(x))
    assert torch.equal(narrow.view(torch.int16), x.to(torch.bfloat16).view(torch.int16))
    assert torch.equal(finite, x.to(torch.bfloat16).isfinite())


@needs_compiler
@needs_headers
@pytest.mark.parametrize("d", [1, 31, 32, 33, 100, 264])
def test_mx8_rows_are_those_of_the_definition(numbers, d):
    n = 500
    spread = torch.randn(n, d) * torch.exp2(torch.randint(-130, 120, (n, 1)).float())
    x = torch.cat([spread, any_floats(n * d).view(n, d), torch.zeros(1, d), -torch.zeros(1, d)])
    x[0, 0], x[1, d - 1] = torch.inf, torch.nan
    rows = torch.zeros(len(x), mx8.row_bytes(d), dtype=torch.uint8)
    finite = torch.zeros(len(x), dtype=torch.bool)
    call(numbers.to_mx8, x, rows, finite, len(x), d)
    assert torch.equal(finite, x.isfinite().all(1))
    assert torch.equal(rows[finite], mx8.encode(x)[finite])

    out = torch.zeros(len(x), d, dtype=torch.bfloat16)
    call(numbers.from_mx8, rows, out, len(x), d)
    assert torch.equal(out[finite].double(), mx8.decode(rows, d)[finite])
    assert not out[0, :32].isfinite().any() and not out[1, (d - 1) // 32 * 32 :].isfinite().any()


# ---------------------------------------------------------------- its kernels


@needs_nvcc
@needs_compiler
@pytest.mark.parametrize("architecture", ["80", "90a", "100"])
def test_kernels_compile_and_stay_in_registers(architecture, tmp_path):
    known = run([NVCC, "--list-gpu-code"]).stdout.split()
    if f"sm_{architecture.rstrip('a')}" not in known:
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    result = run(
        [
            NVCC, "-std=c++17", "-O3", "--Werror=all-warnings", "-Xptxas", "-v",
            f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
            "-Icsrc", "-c", "csrc/cuda/cuda_backend.cu", "-o", tmp_path / "cuda_backend.o",
        ]
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    kernels = re.findall(r"Compiling entry function '(\w+)'", result.stderr)
    used = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr
    )
    assert kernels and len(used) >= len(kernels)
    assert set(used) == {("0", "0", "0")}, result.stderr
