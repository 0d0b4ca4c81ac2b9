"""A fifth more work in any C++ kernel makes the guard fail and name it; and it counts right.

    pytest -m slow tests/benchmarks/test_guard_slowdowns.py -s

It compiles every kernel for every instruction set, and takes minutes.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.guard import __main__ as guard
from benchmarks.guard import native, records

pytestmark = pytest.mark.slow


def again(argument: str, size: str, least: int, call: str) -> str:
    """First a fifth of the tokens, features or rows, which the kernel then does again."""
    part = f"auto part = {argument}; part.{size} /= 5; {call};"
    return f"if ({argument}.{size} >= {least}) {{ {part} }}"


AGAIN = {
    "encode_topk": again("e", "N", 100, "encode_topk(part, k, values, indices)"),
    "encode_relu": again("e", "N", 100, "encode_relu(part, threshold)"),
    "encode_batchtopk": again("e", "N", 100, "encode_batchtopk(part, total / 5)"),
    "decode": again("code", "N", 100, "decode(values, part, W, d, out, threads)"),
    "code_grad": again("code", "N", 100, "code_grad(grad, part, W, d, out, threads)"),
    "transpose_code": again(
        "code", "N", 100, "transpose_code(part, F, feature_offsets, rows, positions, threads)"
    ),
    "weight_grad": "if (F >= 300) weight_grad(coefs, code, source, F / 5, d, dW, db, threads);",
    "adam": "if (rows >= 300) adam(w, grad, rows / 5, d, options, threads);",
    "sparse_adam": again("s", "F", 300, "sparse_adam(part, options, db_dec)"),
    "sparse_grad_norm": again("s", "F", 300, "sparse_grad_norm(part, unit_norm, db_dec)"),
    # Its work grows with the square of the length.
    "attention_capture": "if (a.T >= 600) {"
    " auto part = a; part.T = part.S = a.S * 4 / 9; attention_capture(part); }",
    "put_rows": again("p", "n", 200, "put_rows(part)"),
    "take_rows": again("t", "n", 200, "take_rows(part)"),
    "gather_rows": "if (n >= 200) gather_rows(pool, slots, n / 5, bytes, out, threads);",
    "scatter_rows": "if (n >= 200) scatter_rows(from, slots, n / 5, bytes, pool, threads);",
}


def test_every_kernel_is_slowed_here():
    listed = (native.ROOT / "csrc/kernels/list.h").read_text()
    assert set(re.findall(r"^KERNEL\(\w+, (\w+),", listed, re.M)) == set(AGAIN)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """What CMake reads of a checkout, to be patched."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copy(native.ROOT / "CMakeLists.txt", root)
    for folder in ("csrc", "benchmarks/guard"):
        shutil.copytree(native.ROOT / folder, root / folder)
    return root


@contextlib.contextmanager
def slowed_down(kernel: str, csrc: Path) -> Iterator[None]:
    beginning = re.compile(rf"^\w+ {kernel}\([^{{;]*\{{\n", re.M)
    (source,) = (path for path in csrc.rglob("*_cpu.cpp") if beginning.search(path.read_text()))
    text = source.read_text()
    source.write_text(beginning.sub(lambda m: f"{m[0]}    {AGAIN[kernel]}\n", text))
    yield
    source.write_text(text)


@pytest.mark.parametrize("kernel", AGAIN)
def test_a_slowdown_is_found_and_named(kernel, checkout, capsys):
    with slowed_down(kernel, checkout / "csrc"):
        assert not guard.check_counts(checkout)
    named = re.findall(rf"^ *\S+ +\S+  {kernel}\b.*: \+([\d.]+) %$", capsys.readouterr().out, re.M)
    recorded = records.read(records.path_of("cpp", native.compiler()))
    cases = [name for name in recorded if name.rpartition(", ")[2] in native.isas()]
    assert len(named) == len([name for name in cases if re.match(rf"{kernel}\b", name)])
    more = [float(percent) for percent in named]
    with capsys.disabled():
        print(f"\n{kernel}: {min(more):+} to {max(more):+} % in {len(more)} cases")


@pytest.mark.skipif(not shutil.which("valgrind"), reason="no valgrind here")
@pytest.mark.parametrize("isa", ["portable", "avx2"])  # valgrind knows no AVX-512
def test_callgrind_counts_the_same(isa, tmp_path):
    counts = native.count()
    program = native.build(native.ROOT, "plain") / f"driver_{isa}"
    profile = tmp_path / "profile"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}", program]
    subprocess.run(command, capture_output=True, check=True)
    totals = subprocess.run(
        ["callgrind_annotate", "--inclusive=yes", "--threshold=100", profile],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for kernel in AGAIN:
        if kernel.endswith("_rows"):  # a buffer calls them as well
            continue
        found = re.search(rf"^ *([\d,]+) .*:tb::{isa}::{kernel}\(", totals, re.M)
        assert found, kernel
        with_libc = int(found[1].replace(",", ""))
        own = re.compile(rf"{kernel}\b.*, {isa}$")
        ours = sum(n for name, n in counts.items() if own.match(name))
        print(f"{isa}, {kernel}: {with_libc} by callgrind, {ours} counted")
        assert 0.95 * with_libc < ours < 1.001 * with_libc
