"""Who is timed keeps what it frees; who is asked for its memory does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.peers import heap

# Blocks of one size, freed and asked for again with something small taken in between, as a training
# step does; then what a fresh process would not have.
_PROGRAM = """
import ctypes, resource, sys
from benchmarks.peers import heap
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.aligned_alloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
size, kept = 32 * 2**20, []
def step():
    block = libc.aligned_alloc(64, size)
    ctypes.memset(block, 1, size)
    kept.append(libc.malloc(40))
    libc.free(block)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, heap.memory("VmRSS"))
heap.give_back()
print(heap.memory("VmRSS"))
"""


def faults_and_sizes(environment: dict[str, str]) -> tuple[int, int, int]:
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    faults, with_free, without = map(int, run.stdout.split())
    return faults, with_free, without


def test_a_timed_process_does_not_pay_for_its_pages_again():
    pages = 4 * 32 * 2**20 // 4096
    faults, with_free, without = faults_and_sizes(heap.keeping())
    assert faults < 0.01 * pages
    assert with_free - without > 30 * 2**20
    assert faults_and_sizes(heap.plain())[0] > 4 * faults


def test_settings_of_a_timed_run_do_not_reach_a_plain_one(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", heap.keeping()["GLIBC_TUNABLES"])
    assert "GLIBC_TUNABLES" not in heap.plain()


def test_no_such_line_is_told():
    with pytest.raises(RuntimeError, match="VmNothing"):
        heap.memory("VmNothing")
