"""The fit finds what it was made from, memory is counted right, curves and tables are written."""

from __future__ import annotations

import pytest
import torch

from benchmarks import charts, scaling, scaling_ranks
from benchmarks.peers.steps import CONTENDERS
from benchmarks.scaling_fit import PROCESS, TERMS, Point, fit, memory_bytes, memory_end, state_bytes
from benchmarks.tables import markdown
from trustbench.report import style

COEFFICIENTS = dict(zip(TERMS, (1e-3, 2e-12, 0.0, 4e-10), strict=True))


def row(point: Point, sweep: str) -> dict:
    """As if it were measured, on a machine that COEFFICIENTS describe."""
    seconds = point.layers * sum(COEFFICIENTS[name] * count(point) for name, count in TERMS.items())
    predicted = memory_bytes(point, 2, bf16=True)
    return {
        "sweep": sweep, **point._asdict(), "threads": 2, "bf16": True, "free": 10**10,
        "predicted": predicted, "seconds": seconds, "peak": predicted,
    }  # fmt: skip


@pytest.fixture
def rows() -> list[dict]:
    return [row(p, name) for name in scaling.BASE._fields for p in scaling.points(name, "full")]


def test_the_fit_finds_its_coefficients(rows):
    found = fit(rows)
    assert found.coefficients == pytest.approx(COEFFICIENTS, rel=1e-6, abs=1e-15)
    assert max(map(abs, found.errors)) < 1e-9
    assert found.seconds(scaling.BASE._replace(layers=3)) == pytest.approx(
        3 * found.seconds(scaling.BASE)
    )


def test_no_part_of_a_step_costs_less_than_nothing(rows):
    for i, one in enumerate(rows):
        one["seconds"] *= 0.5 + i % 3
    assert all(each >= 0 for each in fit(rows).coefficients.values())


def test_state_is_what_a_trainer_holds():
    point = Point(8, 24, 96, 4, layers=2)
    held = 0
    options = {"bf16": False, "lr": 1e-4, "steps": 1, "dead_after": 0}
    for trainer in CONTENDERS["trustbench"](**point._asdict() | options).trainers:
        state = trainer.state_dict()
        held += sum(t.numel() * t.element_size() for name, t in state.items() if name != "steps")
    assert state_bytes(point) == held


@pytest.mark.parametrize("variable", Point._fields)
def test_memory_ends_where_one_more_does_not_fit(variable):
    free = 3 * 10**9
    end = memory_end(scaling.BASE, variable, free, 2, bf16=True)
    if end is None:
        assert variable == "k"
        return

    def needs(value: int) -> int:
        return PROCESS + memory_bytes(scaling.BASE._replace(**{variable: value}), 2, bf16=True)

    assert needs(end) <= free < needs(end + 1)


def test_a_point_that_does_not_fit_is_said_and_not_tried(rows):
    found = scaling.measured(scaling.BASE, rounds=1, free=PROCESS)
    assert found["seconds"] is None and "does not fit" in found["why"]
    assert "does not fit" in text([*rows, {"sweep": "F"} | found])


def test_a_point_is_measured_in_a_process_of_its_own():
    found = scaling.measured(Point(256, 64, 4096, 8), rounds=2, free=10**10)
    assert 0 < found["fastest"] <= found["seconds"] <= found["slowest"]
    assert found["peak"] > 0 and found["threads"] == torch.get_num_threads()


def ranks() -> list[dict]:
    runs = scaling_ranks.plan("strong, layers", [1, 2], 64)
    return scaling_ranks.compare("strong, layers", dict(zip(runs, (1000.0, 1500.0), strict=True)))


def test_what_runs_on_how_many_processes():
    strong = scaling_ranks.plan("strong, tokens", [1, 2, 4], 64)
    assert [(r.processes, r.layers, r.batch) for r in strong] == [(1, 6, 64), (2, 6, 64), (4, 6, 64)]
    weak = scaling_ranks.plan("weak, layers", [1, 2, 8], 64)  # there are six layers
    assert [(r.processes, r.layers) for r in weak] == [(1, 3), (2, 6)]
    assert [r.batch for r in scaling_ranks.plan("weak, tokens", [1, 2], 64)] == [64, 128]
    assert [r["speed_up"] for r in ranks()] == [1.0, 1.5]
    assert [r["efficiency"] for r in ranks()] == [1.0, 0.75]


def test_a_run_is_what_a_person_would_type(tmp_path):
    run = scaling_ranks.plan("strong, tokens", [1, 2], 64)[1]
    words = scaling_ranks.command(run, tmp_path, tmp_path / "out", steps=4)
    assert "torch.distributed.run" in words and "--nproc-per-node=2" in words
    assert "--parallel=tokens" in words and "--tokens=256" in words


def text(found: list[dict]) -> str:
    blocks = scaling.blocks(found)
    return "\n".join(b if isinstance(b, str) else markdown(*b) for b in blocks)


def test_table_and_figure(rows):
    said = text(rows + ranks())
    assert all(name in said for name in TERMS)
    assert "1.50 ×" in said and "75%" in said and "no end" in said
    assert "memory ends" in style.svg(charts.scaling, rows + ranks())
    assert "strong, layers" in style.svg(charts.scaling, ranks())
