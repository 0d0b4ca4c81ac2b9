"""Tables: what enters comes back from the file, what cannot is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from trustbench.errors import DataError, InputError
from trustbench.report import Table, TableWriter

ROWS = [
    {"hook_point": "a", "tokens": 1, "fvu": 0.1, "bins": [1, 2]},
    {"hook_point": "b", "tokens": 1, "fvu": math.nan, "bins": (3, math.nan)},
    {"hook_point": "a", "tokens": 2, "fvu": -math.inf, "name": 'He said "é\n"', "good": True},
]


def test_a_file_holds_what_the_table_held(tmp_path):
    table = Table(ROWS)
    table.write(tmp_path / "eval.jsonl", {"seed": 3})
    assert Table.read(tmp_path / "eval.jsonl") == table
    assert json.loads((tmp_path / "eval.about.json").read_text()) == {"seed": 3}
    assert table[1] == {"hook_point": "b", "tokens": 1, "fvu": None, "bins": [3, None]}
    assert table[2]["fvu"] == -math.inf


def test_lines_are_json_and_as_json_writes_them(tmp_path):
    Table(ROWS).write(tmp_path / "x.jsonl")
    lines = (tmp_path / "x.jsonl").read_text().splitlines()

    def refused(word):
        raise AssertionError(word)

    rows = [json.loads(line, parse_constant=refused) for line in lines]  # no NaN, no Infinity
    assert lines[:2] == [json.dumps(row) for row in rows[:2]]
    assert "-1e999" in lines[2]


@pytest.mark.parametrize("value", [{}, [[1]], object(), np.int64(1), 1j, b"x"])
def test_values_are_flat(value):
    with pytest.raises(InputError, match=r"fvu=.*flat list"):
        Table([{"fvu": value}])
    with pytest.raises(InputError, match="column=1"):
        Table([{1: 2}])


def test_numpy_floats_are_numbers(tmp_path):
    assert type(Table([{"x": np.float64(0.5)}])[0]["x"]) is float


def test_columns_where_and_unique():
    table = Table(ROWS)
    assert table.columns == ["hook_point", "tokens", "fvu", "bins", "name", "good"]
    assert table["good"] == [None, None, True] and table.unique("hook_point") == ["a", "b"]
    assert table.where(hook_point="a")["tokens"] == [1, 2]
    assert len(table.where(lambda row: row["tokens"] > 1, hook_point="b")) == 0
    with pytest.raises(InputError, match=r"column='fvv': expected one of: hook_point, tokens"):
        table["fvv"]
    assert Table()["anything"] == [] and len(Table()) == 0 and Table().columns == []


def test_pivot_lays_pairs_out():
    cells = [("l1", 0, 0.5), ("l0", 1, 0.25), ("l1", 1, None)]
    table = Table({"layer": layer, "head": head, "x": x} for layer, head, x in cells)
    assert list(table.pivot("layer", "head", "x")) == [
        {"layer": "l1", "0": 0.5, "1": None},
        {"layer": "l0", "0": None, "1": 0.25},
    ]
    table.append({"layer": "l0", "head": 1, "x": 9})
    with pytest.raises(InputError, match="one row for each pair of layer and head"):
        table.pivot("layer", "head", "x")


def test_text_is_aligned_and_leaves_lists_out():
    assert Table(ROWS[:2]).text() == (
        "hook_point  tokens  fvu\n"
        "         a       1  0.1\n"
        "         b       1    -"
    )  # fmt: skip
    assert Table(ROWS[:1]).text(["bins"]) == "  bins\n[1, 2]"
    assert Table().text() == ""


def test_a_line_that_is_no_row_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    with pytest.raises(DataError, match=r"x\.jsonl: not readable"):
        Table.read(path)
    for line in ("[1]", "{", '{"a": {"b": 1}}', "3"):
        path.write_text(f'{{"a": 1}}\n{line}\n')
        with pytest.raises(DataError, match=r"x\.jsonl, line 2: not a row"):
            Table.read(path)


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": 2')
    assert list(Table.read(tmp_path / "x.jsonl")) == [{"a": 1}]


def test_a_writer_resumes_where_its_checkpoint_was(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = TableWriter(path)
    writer.append(ROWS[0])
    position = writer.position
    writer.append(ROWS[1])  # after the checkpoint, before the job is killed
    assert Table.read(path) == Table(ROWS[:2])  # nothing waits in a buffer
    assert writer.position == path.stat().st_size
    writer.close()
    writer = TableWriter(path, position)
    writer.append(ROWS[2])
    writer.close()
    assert Table.read(path) == Table([ROWS[0], ROWS[2]])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_told_at_once(tmp_path):
    writer = TableWriter(tmp_path / "x.jsonl")
    writer._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        writer.append(ROWS[0])
    writer.close()
    assert writer.position == 0


def test_parquet_and_pandas(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    Table(ROWS).write_parquet(tmp_path / "x.parquet")
    found = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert found[0]["bins"] == [1, 2] and found[1]["fvu"] is None and found[2]["bins"] is None


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(InputError, match="pip install pandas"):
        Table(ROWS).to_pandas()
