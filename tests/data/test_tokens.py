"""Rows of tokens: nothing lost, nothing leaked, resumable anywhere."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch

from trustbench.data import Documents, TokenStream
from trustbench.errors import DataError, InputError


@pytest.fixture
def corpus(tmp_path):
    texts = [f"the king {i} " + "speaks of the realm " * (i % 7) for i in range(40)]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return texts, Documents(str(path))


def rows_of(stream):
    return [
        row[mask].tolist()
        for batch in stream
        for row, mask in zip(batch.input_ids, batch.mask, strict=True)
    ]


def test_every_token_once_and_no_row_holds_two_documents(corpus, tiny_tokenizer):
    texts, documents = corpus
    stream = TokenStream(documents, tiny_tokenizer, 16, 3, repeat=False)
    rows = rows_of(stream)
    expected = []
    for text in texts:
        ids = tiny_tokenizer(text, add_special_tokens=False).input_ids
        expected += [ids[i : i + 16] for i in range(0, len(ids), 16)]
    assert rows == expected


def test_packed_documents_follow_each_other_with_an_end_token(corpus, tiny_tokenizer):
    texts, documents = corpus
    stream = TokenStream(documents, tiny_tokenizer, 16, 3, pack_documents=True, repeat=False)
    joined = [token for row in rows_of(stream) for token in row]
    expected = []
    for text in texts:
        expected += tiny_tokenizer(text, add_special_tokens=False).input_ids
        expected.append(tiny_tokenizer.eos_token_id)
    assert joined == expected[: len(joined)] and len(expected) - len(joined) < 16


def test_bos_starts_every_row_and_is_masked(corpus, tiny_tokenizer):
    _, documents = corpus
    batch = next(TokenStream(documents, tiny_tokenizer, 16, 3, prepend_bos=True))
    assert (batch.input_ids[:, 0] == tiny_tokenizer.bos_token_id).all()
    assert not batch.mask[:, 0].any() and batch.input_ids.shape[1] <= 16


def test_train_and_heldout_share_no_document(corpus, tiny_tokenizer):
    _, documents = corpus
    parts = {}
    for part in ("train", "heldout", "all"):
        stream = TokenStream(
            documents, tiny_tokenizer, 64, 4, part=part, heldout_fraction=0.1, repeat=False
        )
        parts[part] = [tuple(row) for row in rows_of(stream)]
    assert not set(parts["train"]) & set(parts["heldout"])
    assert sorted(parts["train"] + parts["heldout"]) == sorted(parts["all"])
    assert len(parts["heldout"]) >= 4


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("stop", [1, 7, 13, 40])
def test_resumes_anywhere(corpus, tiny_tokenizer, pack, stop):
    _, documents = corpus

    def make():
        return TokenStream(
            documents, tiny_tokenizer, 16, 3, pack_documents=pack,
            part="train", heldout_fraction=0.2,
        )  # fmt: skip

    whole = list(islice(make(), stop + 30))
    first = make()
    for _ in range(stop):
        next(first)
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for expected, found in zip(whole[stop:], second, strict=False):
        assert torch.equal(expected.input_ids, found.input_ids)
        assert torch.equal(expected.mask, found.mask)
    assert first.epoch > 0 or stop < 40  # the longest case has gone round


def test_real_text_round_trip(shared_text, tiny_tokenizer):
    stream = TokenStream(Documents(str(shared_text)), tiny_tokenizer, 128, 8, repeat=False)
    text = tiny_tokenizer.decode([t for row in rows_of(islice(stream, 20)) for t in row])
    assert shared_text.read_text(encoding="utf-8").startswith(text[:20000])


def test_empty_parts_are_refused(tmp_path, tiny_tokenizer):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"no tokens in its 'all' part \(0 documents\)"):
        next(TokenStream(Documents(str(tmp_path / "empty.txt")), tiny_tokenizer, 16, 2))
    (tmp_path / "one.txt").write_text("one document only")
    stream = TokenStream(
        Documents(str(tmp_path / "one.txt")), tiny_tokenizer, 16, 2,
        part="heldout", heldout_fraction=0.1,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"no tokens in its 'heldout' part \(1 documents\)"):
        next(stream)


def test_bad_arguments_are_named(corpus, tiny_tokenizer):
    _, documents = corpus
    with pytest.raises(InputError, match="context_length=1"):
        TokenStream(documents, tiny_tokenizer, 1, 2)
    with pytest.raises(InputError, match=r"heldout_fraction=0\.7"):
        TokenStream(documents, tiny_tokenizer, 16, 2, heldout_fraction=0.7)
    with pytest.raises(InputError, match="held-out part"):
        TokenStream(documents, tiny_tokenizer, 16, 2, part="heldout")
