"""Documents from every kind of source."""

from __future__ import annotations

import gzip
import json

import pytest

from trustbench.data import Documents
from trustbench.data.documents import BLOCK_CHARACTERS
from trustbench.errors import DataError

TEXTS = ["one", "two\nlines", "drei"]


def test_txt_in_blocks_of_lines_loses_nothing(tmp_path):
    path = tmp_path / "a.txt"
    text = "".join(f"line {i}\n" for i in range(9000)) + "no newline at the end"
    path.write_text(text)
    found = list(Documents(str(path)).starting_at(0))
    assert "".join(found) == text and len(found) > 3
    assert all(BLOCK_CHARACTERS <= len(d) < BLOCK_CHARACTERS + 20 for d in found[:-1])
    assert list(Documents(str(path)).starting_at(2)) == found[2:]


def test_txt_with_separator(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n===\n".join(TEXTS))
    assert list(Documents(str(path), separator="\n===\n").starting_at(0)) == TEXTS


def test_jsonl_gz_parquet_and_directory(tmp_path):
    import pyarrow
    import pyarrow.parquet

    lines = "\n".join(json.dumps({"text": t}) for t in TEXTS) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(lines)
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "c.parquet")
    (tmp_path / "ignored.md").write_text("not data")
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"):
        assert list(Documents(str(tmp_path / name)).starting_at(1)) == TEXTS[1:]
    assert list(Documents(str(tmp_path)).starting_at(0)) == TEXTS * 3
    assert list(Documents(str(tmp_path / "*.jsonl")).starting_at(0)) == TEXTS


def test_hugging_face_data_set_streams(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    stream = datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return stream

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(Documents("hf:some/name:config", split="train").starting_at(1)) == TEXTS[1:]
    assert asked == [(("some/name", "config"), {"split": "train", "streaming": True})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text"', "line 2 is not JSON"),
        ("a.jsonl", b'{"txt": "x"}\n', "line 1: expected a text in field 'text'"),
        ("a.txt", b"\xff\xfe\xfa bad", "not readable"),
        ("a.jsonl.gz", b"not gzip", "not readable"),
        ("a.parquet", b"not parquet", "not readable as parquet"),
    ],
)
def test_unreadable_data_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(Documents(str(tmp_path / name)).starting_at(0))


def test_missing_data_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file, directory or glob"):
        Documents(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=r"holds no \.txt"):
        Documents(str(tmp_path))
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match=r"expected one of \.txt"):
        Documents(str(tmp_path / "a.csv"))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"no column 'text' \(columns: body\)"):
        list(Documents(str(tmp_path / "c.parquet")).starting_at(0))
