"""How the suite measures: interleaved, in processes of their own, absent peers told."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks import suite as suite_module
from benchmarks.roofline import Floor
from benchmarks.run import run
from benchmarks.shapes import SCALES, label
from benchmarks.subjects import subjects
from benchmarks.suite import Suite, interleaved
from benchmarks.workers import Measured, Worker, measure, start
from tests.benchmarks import rows
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.spec import BENCHMARK_SHAPES

ROOT = Path(__file__).parents[2]


def test_contenders_take_turns_after_one_to_warm_up():
    order, now = [], iter(range(100))
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = interleaved(calls, 3, clock=lambda: float(next(now)))
    assert order == list("ab" * 4)
    assert seconds == {"a": [1.0] * 3, "b": [1.0] * 3}


class Benchmark:
    """What pytest-benchmark's fixture does with a target and its clock."""

    def __init__(self):
        self.extra_info, self.group, self.times = {}, None, []

    def pedantic(self, target, rounds):
        for _ in range(rounds):
            start = suite_module.replayed()
            target()
            self.times.append(suite_module.replayed() - start)


@pytest.fixture
def toy() -> Suite:
    return Suite(SCALES["toy"], sys.executable, small=True)


def test_times_are_played_back_with_their_row(toy):
    benchmark, measured = Benchmark(), Measured([0.5, 0.25, 1.0], "1.2", None, {"peak_mb": 3})
    floor = Floor(1e6)
    toy.report(benchmark, "step", {"case": "N = 8", "contender": "sparsify"}, measured, floor)
    assert benchmark.times == pytest.approx([0.5, 0.25, 1.0]) and benchmark.group == "step: N = 8"
    assert benchmark.extra_info["step"] == {
        "case": "N = 8", "contender": "sparsify", "version": "1.2", "peak_mb": 3,
        "floor": floor.seconds(toy.ceilings),
    }  # fmt: skip


def test_an_absent_peer_is_written_down_and_skipped_saying_why(toy):
    row = {"case": "N = 8", "contender": "sparsify"}
    with pytest.raises(pytest.skip.Exception, match="sparsify is absent: no such module"):
        toy.report(Benchmark(), "step", row, Measured([], None, "no such module", {}))
    assert toy.absent == [{"subject": "step", "version": None, "absent": "no such module", **row}]


def test_were_it_ours_the_suite_fails(toy):
    row = {"case": "N = 8", "contender": "trustbench, MXFP8"}
    with pytest.raises(pytest.fail.Exception, match="trustbench, MXFP8 is absent"):
        toy.report(Benchmark(), "buffer", row, Measured([], None, "killed", {}))


def test_a_group_is_measured_once(toy):
    calls = []
    for _ in range(3):
        assert toy.once(("step", 1), lambda: calls.append(1) or "found") == "found"
    assert calls == [1]


def test_a_worker_runs_its_contender_and_its_memory_is_told():
    case = SCALES["toy"].attention[0]._asdict()
    found = measure(
        "attention",
        {"ours": ("trustbench", case), "torch": ("SDPA, no statistics", case)},
        peers_python=sys.executable, rounds=3, memory=True,
    )  # fmt: skip
    assert all(len(m.seconds) == 3 and min(m.seconds) > 0 for m in found.values())
    assert found["ours"].version == "0.1.0" and found["ours"].absent is None
    assert found["torch"].answers["peak_mb"] >= 0


def test_an_environment_without_the_peer_and_no_environment_at_all():
    options = SCALES["toy"].step[0]._asdict() | {"lr": 1.0, "steps": 1, "bf16": False}
    workers = start("steps", {"sparsify": ("sparsify", options)}, "/no/such/python")
    assert "/no/such/python: No such file" in workers["sparsify"].absent
    assert workers["sparsify"].ask(do="round") == {}


def test_a_worker_takes_other_options_and_says_its_last_words():
    case = SCALES["toy"].attention[0]._asdict()
    worker = Worker("attention", "SDPA, no statistics", sys.executable, case)
    worker.build(case | {"T": 128})
    assert worker.ask(do="round")["seconds"] > 0
    assert worker.call("nothing") is None
    assert "ended with status 1: AttributeError" in worker.absent
    assert worker.ask(do="round") == {}
    worker.close()


def test_every_op_has_a_benchmark_and_every_shape_is_of_the_table():
    names = [m.name for m in pkgutil.iter_modules(ops.__path__)]
    modules = {name: importlib.import_module(f"trustbench.ops.{name}") for name in names}
    with_floor = {name for name, module in modules.items() if hasattr(module, "SPEC")}
    folder = Path(benchmarks.__path__[0])
    files = {path.stem.removeprefix("test_") for path in (folder / "ops").glob("test_*.py")}
    # Attention has shapes of its own, and so a file of its own.
    assert files == with_floor - {"attention_capture"}
    assert SCALES["full"].ops == BENCHMARK_SHAPES
    assert label(BENCHMARK_SHAPES[0]) == "N = 2048, d = 512, F = 16384, k = 32"


def test_every_subject_is_there():
    for subject in subjects():
        assert subject.path().exists(), subject.name
        module = subject.load()
        assert callable(module.table) and callable(module.figure)


def test_the_whole_way_at_toy_sizes(tmp_path, capfd):
    options = {"scale": "toy", "only": ["ops"], "peers_python": "", "readme": False}
    assert run(out=tmp_path / "run", compare=None, **options) == 0
    written = json.loads((tmp_path / "run" / "bench.json").read_text())
    assert written["machine_info"]["commit"] and written["machine_info"]["ceilings"]["flops"]["bf16"]
    assert "node" not in written["machine_info"] and written["absent"] == []
    found = [case["extra_info"]["ops"] for case in written["benchmarks"]]
    assert {row["contender"] for row in found} > {"trustbench", "torch: embedding_bag"}
    assert all(row["floor"] > 0 for row in found)
    assert (tmp_path / "run" / "bench.html").exists()
    assert "| torch: embedding_bag |" in capfd.readouterr().out


def test_a_record_of_other_shapes_is_told_before_anything_runs(tmp_path):
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(rows.record()))
    options = {"scale": "quick", "only": [], "peers_python": "", "readme": False}
    with pytest.raises(InputError, match="a record of --quick, not --toy"):
        run(out=tmp_path / "run", compare=earlier, **options)


def test_an_unknown_subject_is_told_before_anything_runs(tmp_path):
    options = {"scale": "toy", "peers_python": "", "compare": None, "readme": False}
    with pytest.raises(InputError, match="only='stpe': expected subjects out of: step, quality"):
        run(out=tmp_path / "run", only=["ops", "stpe"], **options)
    assert not (tmp_path / "run").exists()
