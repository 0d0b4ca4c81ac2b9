"""Examples: every source, every field, tokens of prompts and answers, padded on either side."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from tests.models.families import model_of
from trustbench.data import Examples
from trustbench.errors import DataError, InputError
from trustbench.models import hooked

RECORDS = [
    {"prompt": "The sea", "answer": " and shore", "group": "sea", "template": 1},
    {"prompt": "A longer line of text", "answer": " ends", "label": 1, "group": "line"},
    {"prompt": "No", "label": 0, "group": "sea"},
]


def test_every_source_gives_the_same(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a"
    wanted = list(Examples(RECORDS))
    lines = "\n".join(map(json.dumps, RECORDS))
    (tmp_path / "a.jsonl").write_text(lines + "\n\n")
    assert list(Examples.read(f"{path}.jsonl")) == wanted
    keys = {name: None for record in RECORDS for name in record}
    table = pyarrow.Table.from_pylist([keys | record for record in RECORDS])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = Examples.read(f"{path}.parquet")
    assert [e[:4] for e in found] == [e[:4] for e in wanted] and found[0].fields["template"] == 1
    rows = [["text", "class", "source"], ["a, b", "yes", "x"], ['"c"\nd', "no", "y"]]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    found = Examples.read(f"{path}.csv", prompt="text", label="class", group="source")
    assert [(e.prompt, e.label, e.group) for e in found] == [tuple(row) for row in rows[1:]]


def test_groups_are_those_of_the_records_or_each_its_own():
    examples = Examples(RECORDS)
    assert examples.grouped and [e.group for e in examples] == ["sea", "line", "sea"]
    alone = Examples([{"prompt": "x", "label": False}, {"prompt": "y", "label": True}])
    assert not alone.grouped and [e.group for e in alone] == ["0", "1"]
    assert [e.label for e in alone] == [False, True] and len(alone[:1]) == 1


@pytest.mark.parametrize("padding", ["left", "right"])
def test_tokens_stand_where_they_are_said_to(tiny_tokenizer, padding):
    examples = Examples(RECORDS)
    batches = list(examples.batches(tiny_tokenizer, 2, padding=padding, prepend_bos=False))
    assert [batch.numbers.tolist() for batch in batches] == [[0, 1], [2]]
    for batch in batches:
        for row, number in enumerate(batch.numbers.tolist()):
            example, ids = examples[number], batch.input_ids[row]
            real = batch.attention_mask[row].bool()
            answer, query = batch.answer[row], int(batch.query[row])
            text = example.prompt + (example.answer or "")
            assert tiny_tokenizer.decode(ids[real]) == text
            assert tiny_tokenizer.decode(ids[answer]) == (example.answer or "")
            assert tiny_tokenizer.decode(ids[: query + 1][real[: query + 1]]) == example.prompt
            assert batch.position_ids[row][real].tolist() == list(range(int(real.sum())))
            assert bool(real[-1 if padding == "left" else 0])
            assert not (answer & ~real).any()
    (prompts,) = examples.batches(tiny_tokenizer, 9, padding=padding, answers=False)
    assert not prompts.answer.any()
    if padding == "left":
        assert set(prompts.query.tolist()) == {prompts.input_ids.shape[1] - 1}


def test_a_model_gives_the_same_on_either_side(tiny_tokenizer):
    model, name = model_of("GPTNeoX"), "gpt_neox.layers.1.attention.q"
    found = []
    for padding in ("left", "right"):
        (batch,) = Examples(RECORDS).batches(tiny_tokenizer, 3, padding=padding)
        with hooked(model, read=[name], stop=True) as acts:
            given = batch._asdict()
            model(given["input_ids"] % 64, given["attention_mask"], given["position_ids"])
        found.append(acts[name][batch.attention_mask.bool()])
    torch.testing.assert_close(*found)


def test_bos_is_the_only_special_token(tiny_tokenizer):
    tiny_tokenizer.bos_token, before = "<end>", tiny_tokenizer.bos_token
    try:
        (batch,) = Examples(RECORDS[:1]).batches(tiny_tokenizer, 1, prepend_bos=True)
    finally:
        tiny_tokenizer.bos_token = before
    assert batch.input_ids[0, 0] == tiny_tokenizer.eos_token_id
    assert batch.attention_mask.all() and not batch.answer[0, : int(batch.query) + 1].any()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x", "label": 1}, "record 1: expected a text in field 'prompt'"),
        ({"prompt": 3, "label": 1}, "record 1: expected a text in field 'prompt'"),
        (
            {"prompt": "x", "answer": ["y"]},
            r"record 1: expected a text in field 'answer', not \['y'\]",
        ),
        (
            {"prompt": "x", "label": None},
            "record 1: expected an answer in field 'answer', or 'label'",
        ),
        ({"prompt": "x", "label": 1}, "record 1: expected a group in field 'group', as others have"),
        (["x"], r"record 1: expected an object with fields, not \['x'\]"),
    ],
)
def test_a_wrong_record_is_named(record, message):
    with pytest.raises(DataError, match=message):
        Examples([RECORDS[0], record])


def test_wrong_files_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,label\nx,1\ny\n")
    with pytest.raises(DataError, match=r"a\.csv: line 3 has 1 values, not the header's 2"):
        Examples.read(str(tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_text('prompt,label\n"x"y,1\n')
    with pytest.raises(DataError, match=r"b\.csv: line 2 is not CSV"):
        Examples.read(str(tmp_path / "b.csv"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"a\.txt: expected one of \.jsonl"):
        Examples.read(str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match=r"no such \.jsonl"):
        Examples.read(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="it holds no examples"):
        Examples([])
    with pytest.raises(InputError, match="four different names"):
        Examples(RECORDS, prompt="answer")


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"prompt": "", "label": 1}, {}, r"examples\[0\]: its prompt '' has no tokens"),
        ({"prompt": "x", "answer": ""}, {}, r"examples\[0\]: its answer '' has no tokens"),
        ({"prompt": "the line of t", "answer": "he end"}, {}, r"examples\[0\]: the tokenizer joins"),
        ({"prompt": "x y z", "label": 1}, {"context_length": 2}, "at most context_length=2"),
        ({"prompt": "x", "label": 1}, {"padding": "both"}, "padding='both': expected one of"),
        ({"prompt": "x", "label": 1}, {"rows": 0}, "rows=0: expected an integer >= 1"),
    ],
)
def test_rows_that_cannot_be_are_refused(tiny_tokenizer, record, options, message):
    with pytest.raises(InputError, match=message):
        list(Examples([record]).batches(tiny_tokenizer, **{"rows": 4} | options))
