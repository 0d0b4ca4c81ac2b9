"""fvu of families beside their peers: the lines between coefficients, what counts as worse."""

from __future__ import annotations

import pytest

from benchmarks import families
from trustbench.report import Table

TOY = {
    "layer": 1, "tokens": 512, "test_tokens": 256, "N": 128, "F": 1024, "k": 4, "dead_after": 256,
}  # fmt: skip


def _row(case, contender, fvu, **more):
    return {"case": case, "contender": contender, "version": "1", "rate": 1e-3, "fvu": fvu, **more}


def test_fvu_between_two_coefficients_is_a_line_in_log_l0():
    points = [(64.0, 0.1), (16.0, 0.3), (4.0, 0.5)]
    assert families.at_l0(points, 32) == pytest.approx(0.2)
    assert families.at_l0(points, 4) == 0.5 and families.at_l0(points, 64) == 0.1
    assert families.at_l0(points, 65) is None


def test_the_best_rate_counts_at_equal_l0():
    rows = [_row("gated", "SAELens", fvu, l1=1.0, l0=l0) for fvu, l0 in ((0.1, 64), (0.3, 16))]
    rows += [row | {"rate": 2e-3, "fvu": row["fvu"] - 0.05} for row in rows]
    rows += [row | {"rate": 3e-3, "fvu": 0.01, "l0": 100} for row in rows[:1]]  # never at 32
    (found,) = families.best(rows, 32.0)
    assert found["rate"] == 2e-3 and found["l0"] == 32 and found["fvu"] == pytest.approx(0.15)


def test_what_is_worse_is_said():
    nested = {"prefix_fvu": [0.5, 0.4, 0.3, 0.2, 0.1]}
    other = {"prefix_fvu": [0.5, 0.39, 0.3, 0.2, 0.1]}
    rows = [
        _row("matryoshka", "trustbench", 0.1, **nested),
        _row("matryoshka", "SAELens", 0.1, **other),
        _row("transcoder", "trustbench", 0.1),
        _row("transcoder", "sparsify", 0.0995),
        _row("transcoder, skip", "trustbench", 0.1),
        {"case": "transcoder, skip", "contender": "sparsify", "version": None, "absent": "gone"},
    ]
    (said,) = families.worse(rows, 32.0)
    assert said == "matryoshka at prefix 128: trustbench's fvu is 0.4000, SAELens's 0.3900"
    both = [
        _row(case, "trustbench", fvu + step, l1=1.0, l0=l0)
        for case, step in (("gated", 0.001), ("relu", 0.0))
        for fvu, l0 in ((0.1, 64), (0.3, 16))
    ]
    assert families.worse(both, 32.0) == ["gated: fvu 0.2010, ReLU with L1 0.2000, at L0 32"]


def test_every_family_trains_and_a_peer_may_be_absent():
    rows = list(families.measure("/no/such/python", TOY, (3e-3,)))
    present = [row for row in rows if "absent" not in row]
    assert {row["contender"] for row in present} == {"trustbench"}
    assert {row["case"] for row in present} == set(families.CASES)
    assert all(0 < row["fvu"] < 2 and row["l0"] > 0 for row in present if row["case"] != "relu")
    (nested,) = [row for row in present if row["case"] == "matryoshka"]
    assert len(nested["prefix_fvu"]) == 5 and nested["prefix_fvu"][-1] == nested["fvu"]
    text = families.markdown(rows, TOY)
    assert "| transcoder | sparsify |  | absent: /no/such/python: No such file" in text


def test_the_table_beside_the_record_is_its_own():
    rows = Table.read(families.RESULTS / "families.jsonl")
    assert {row["case"] for row in rows} == set(families.CASES)
    assert (families.RESULTS / "families.md").read_text() == families.markdown(rows)
