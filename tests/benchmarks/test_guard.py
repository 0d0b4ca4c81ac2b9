"""The regression guard: what it counts, what it compares, what it says."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from benchmarks.guard import __main__ as guard
from benchmarks.guard import blocks, cuda, native, ratios, records, sass, triton

RECORDS = sorted(records.FOLDER.glob("*.json"))
each_record = pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)


def grown(figures, factor):
    """Every figure times a factor."""
    return {
        name: grown(value, factor) if isinstance(value, dict) else value * factor
        for name, value in figures.items()
    }


@each_record
def test_a_fifth_more_is_found_in_every_kernel(path):
    recorded = records.read(path)
    assert recorded and records.changes(recorded, recorded) == []
    found = {change.name for change in records.changes(recorded, grown(recorded, 1.2))}
    for name, figures in recorded.items():
        parts = figures if isinstance(figures, dict) else {None: figures}
        for part, value in parts.items():
            key = name if part is None else f"{name}, {part}"
            assert (key in found) == (value > 0)
        assert not isinstance(figures, dict) or figures["instructions"] > 0


def test_what_counts_as_a_change():
    recorded = {"a": 1000, "b": {"registers": 0, "spills": 10}, "gone": 5}
    now = {"a": 1030, "b": {"registers": 4, "spills": 9}, "new": 7}
    found = {change.name: change for change in records.changes(recorded, now)}
    assert set(found) == {"b, registers", "b, spills", "gone", "new"}
    assert "-10.0 %" in str(found["b, spills"]) and "was nothing" in str(found["b, registers"])
    assert "is recorded and gone" in str(found["gone"]) and "is not recorded" in str(found["new"])
    assert [c.name for c in records.changes({"a": 1000}, {"a": 1031})] == ["a"]
    assert [c.name for c in records.changes({"a": 1000}, {"a": 960})] == ["a"]  # gains are recorded


def test_only_slower_ratios_fail():
    recorded = {"decode": 0.1, "adam": 0.5, "gone": 1.0}
    now = {"decode": 0.3, "adam": 0.1, "new": 1.0}
    slower = records.slower(recorded, now, ratios.BOUND)
    assert [change.name for change in slower] == ["decode", "gone", "new"]


def test_a_record_says_what_changed_and_is_sorted_a_line_a_name(tmp_path):
    path = tmp_path / "records" / "cpp.json"
    assert records.read(path) is None
    records.write(path, {"b": {"registers": 32}, "a": 100})
    assert path.read_text() == '{\n  "a": 100,\n  "b": {"registers": 32}\n}\n'
    (change,) = records.write(path, {"b": {"registers": 32}, "a": 101})
    assert change == ("a", 100, 101) and "+1.0 %" in str(change)
    assert records.read(path) == {"a": 101, "b": {"registers": 32}}


@pytest.mark.parametrize(
    "path", [p for p in RECORDS if p.stem.startswith("cpp")], ids=lambda p: p.stem
)
def test_every_kernel_has_a_case_with_every_instruction_set(path):
    listed = (native.ROOT / "csrc/kernels/list.h").read_text()
    kernels = set(re.findall(r"^KERNEL\(\w+, (\w+),", listed, re.M))
    assert "encode_topk" in kernels and len(kernels) > 10
    for isa in ("portable", "avx2", "avx512", "avx512bf16"):
        cases = {name.rpartition(", ")[0] for name in records.read(path) if name.endswith(f", {isa}")}
        assert kernels | {"buffer"} == {case.split()[0] for case in cases}


def test_another_compiler_does_not_pass_in_silence(monkeypatch, capsys):
    monkeypatch.setattr(native, "compiler", lambda: "g++ 99")
    assert not guard.check_counts()
    said = capsys.readouterr().out
    assert "no record for g++ 99" in said and records.UPDATE in said


def test_an_update_says_by_how_much_and_keeps_what_this_processor_lacks(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    monkeypatch.setattr(native, "isas", lambda: ["portable"])
    monkeypatch.setattr(native, "count", lambda: {"decode, portable": 90})
    monkeypatch.setattr(ratios, "measure", lambda: {"decode": 0.1})
    monkeypatch.setattr(cuda, "module", lambda: None)
    monkeypatch.setattr(triton, "measured", lambda: [])
    path = records.path_of("cpp", native.compiler())
    records.write(path, {"decode, portable": 100, "decode, avx2": 50})
    guard.update()
    assert records.read(path) == {"decode, avx2": 50, "decode, portable": 90}
    assert re.search(r"100 +90  decode, portable: -10.0 %", capsys.readouterr().out)


ASSEMBLY = """\t.text
\t.globl\twork
work:
\tmovl\t$10, %ecx
.L2:
\tsubl\t$1, %ecx
\tmovl\t%ecx, -4(%rsp)
\tcmpl\t$5, %ecx
\tjg\t.L2
\tje\t.L3
.L3:
\tmovl\t-4(%rsp), %eax
\tret
"""
PROGRAM = """
#include <cstdio>
extern "C" { unsigned long guard_instructions = 0; int work(); }
int main() { int left = work(); std::printf("%d %lu", left, guard_instructions); }
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ here")
def test_counted_assembly_counts_what_runs(tmp_path):
    """Flags live on from block to block, and so does what lies below the stack pointer."""
    (tmp_path / "work.s").write_text(blocks.counted(ASSEMBLY))
    (tmp_path / "main.cpp").write_text(PROGRAM)
    program = tmp_path / "program"
    command = ["g++", tmp_path / "work.s", tmp_path / "main.cpp", "-o", program]
    subprocess.run(command, check=True)
    run = subprocess.run([program], capture_output=True, text=True, check=True)
    assert run.stdout == f"5 {1 + 5 * 4 + 1 + 2}"


LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;      /* 0x00000a00ff017624 */
                                                               /* 0x000fe400078e00ff */
        /*0010*/              @!P0 LDG.E.128 R4, [R2.64] ;
        /*0020*/             @UP1  HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4] ;
        /*0030*/                   STL [R1], R0 ;
        /*0040*/                   FLO.U32 R0, R1 ;
        /*0050*/                   FFMA R0, R1, R2, R3 ;
        /*0060*/                   MUFU.EX2 R0, R0 ;
        /*0070*/                   LDSM.16.M88.4 R4, [R5] ;
        /*0080*/               @P0 BRA 0x90 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   NOP;
"""


def test_the_mix_of_machine_code():
    assert sass.mix(LISTING) == {
        "instructions": 10, "matmul": 1, "spills": 1, "shared accesses": 1, "global accesses": 1,
        "special": 1, "control": 2, "float": 1, "other": 2,
    }  # fmt: skip
