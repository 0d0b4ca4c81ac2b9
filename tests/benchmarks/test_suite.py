"""How the suite measures: interleaved, in processes of their own, absent peers told."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import pytest
import torch

from benchmarks import report, suite
from benchmarks.__main__ import cpu
from benchmarks.cases import cases, label
from benchmarks.clocks import interleaved
from benchmarks.floors import Floor
from benchmarks.peers.ops import CONTENDERS
from benchmarks.record import read
from benchmarks.workers import Worker, figures, measure, measure_here, start
from tests.benchmarks import rows
from trustbench import ops
from trustbench.benchmarking import BenchConfig
from trustbench.errors import InputError
from trustbench.ops.spec import BENCHMARK_SHAPES

ATTENTION = cases("attention", "toy")[0].options
STEP = cases("step", "toy")[0].options


def test_contenders_take_turns_after_one_to_warm_up():
    order = []

    def clock(call):
        call()
        return 1.0

    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    assert interleaved(calls, 3, clock) == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert order == list("ab" * 4)


def test_a_short_call_is_made_several_times_and_a_failing_one_says_why():
    def fails():
        raise ValueError("no")

    found = interleaved({"short": int, "fails": fails}, 2, lambda call: call() or 0.004)
    assert found == {"short": [0.004] * 12, "fails": "ValueError: no"}


def test_figures_are_medians_and_the_absent_have_none():
    assert figures([3.0, 1.0, 2.0], "1.2", None) == {
        "version": "1.2", "seconds": 2.0, "least": 1.0, "largest": 3.0, "rounds": 3
    }  # fmt: skip
    assert figures([1.0], None, "no such module") == {"version": None, "absent": "no such module"}


def test_a_row_says_what_it_is_of_and_its_floor():
    case = cases("step", "toy")[1]
    ceilings = {"copy": 1e9, "fp32": 1e9, "bf16": 2e9}
    (row,) = suite.rows_of(case, {"sparsify": {"seconds": 1.0}}, ceilings)
    assert row == {
        "case": "N = 16, d = 8, F = 32, k = 4", "contender": "sparsify", "matmul": "bf16",
        "seconds": 1.0, "floor": case.floor.seconds(ceilings),
    }  # fmt: skip


def test_a_peer_may_be_absent_and_ours_may_not():
    assert suite.failures(rows.record()) == []
    gone = {
        "subject": "buffer",
        "case": "N = 8",
        "contender": "trustbench, MXFP8",
        "absent": "killed",
    }
    assert suite.failures([gone]) == ["buffer, N = 8: trustbench, MXFP8 is absent: killed"]


def test_speed_is_not_bought_with_quality():
    worse = rows.changed(
        fvu=lambda r: [v * (1.02 if r["contender"] == "trustbench" else 1) for v in r["fvu"]]
    )
    (said,) = suite.failures(worse)
    assert "trustbench's best fvu is 0.2550, more than 1 % worse than {'sparsify': 0.25}" in said


def test_a_worker_runs_its_contender_and_its_memory_is_told():
    found = measure("attention", ["trustbench", "SDPA, no statistics"], ATTENTION, rounds=3)
    assert all(of["rounds"] == 3 and of["least"] > 0 for of in found.values())
    assert found["trustbench"]["version"] == "0.1.0" and "absent" not in found["trustbench"]
    assert found["SDPA, no statistics"]["peak_mb"] >= 0


def test_contenders_here_and_one_that_fails():
    asked = ["trustbench", "flex-sae's kernels"]
    found = measure_here("steps", asked, STEP, 1, torch.device("cpu"))
    assert found["trustbench"]["seconds"] > 0 and "absent" in found["flex-sae's kernels"]


def test_an_environment_without_the_peer_and_no_environment_at_all():
    workers = start("steps", ["sparsify"], STEP, "/no/such/python")
    assert "/no/such/python: No such file" in workers["sparsify"].absent
    assert workers["sparsify"].ask(do="round") == {}


def test_a_worker_takes_other_options_and_says_its_last_words():
    worker = Worker("attention", "SDPA, no statistics", sys.executable, ATTENTION)
    worker.build(dict(ATTENTION) | {"T": 128})
    assert worker.ask(do="round")["seconds"] > 0
    assert worker.call("nothing") is None
    assert "ended with status 1: AttributeError" in worker.absent
    assert worker.ask(do="round") == {}
    worker.close()


def test_every_op_has_contenders_and_its_floor_is_that_of_its_spec():
    names = [m.name for m in pkgutil.iter_modules(ops.__path__)]
    modules = {name: importlib.import_module(f"trustbench.ops.{name}") for name in names}
    with_spec = {name: module.SPEC for name, module in modules.items() if hasattr(module, "SPEC")}
    # Attention has shapes of its own, and so a subject of its own.
    assert set(CONTENDERS) == set(with_spec) - {"attention_capture"}
    for case in cases("ops", "full"):
        spec, shape = with_spec[case.options["op"]], case.options["shape"]
        assert shape in BENCHMARK_SHAPES and "trustbench" in case.contenders
        assert case.floor == Floor(spec.bytes(shape), spec.flops(shape))
    assert label(BENCHMARK_SHAPES[0]._asdict()) == "N = 2048, d = 512, F = 16384, k = 32"


@pytest.mark.parametrize("scale", ["toy", "quick", "full"])
def test_every_subject_has_its_cases_and_its_section(scale):
    for subject in suite.SUBJECTS:
        assert subject in report.SUBJECTS
        assert subject == "scaling" or cases(subject, scale)
    kinds = [case.keys["matmul"] for case in cases("step", "gpu", gpu=True)]
    assert kinds == ["bf16"]  # a GPU's


def test_the_whole_way_at_toy_sizes(tmp_path, capsys):
    assert cpu(BenchConfig(only="ops", out=str(tmp_path)), "toy") == 0
    table, about = read(tmp_path / "bench.jsonl")
    assert about["commit"] and about["config"]["ceilings"]["bf16"] > 0 and about["date"]
    assert {row["contender"] for row in table} > {"trustbench", "torch: embedding_bag"}
    assert all(row["floor"] > 0 and row["subject"] == "ops" for row in table)
    assert (tmp_path / "bench.html").exists()
    assert "| torch: embedding_bag |" in capsys.readouterr().out


def test_a_record_of_other_shapes_is_told_before_anything_runs(tmp_path):
    rows.record().write(tmp_path / "earlier.jsonl", rows.ABOUT)
    with pytest.raises(InputError, match="a record of --quick, not --toy"):
        cpu(BenchConfig(compare=str(tmp_path / "earlier.jsonl")), "quick")
