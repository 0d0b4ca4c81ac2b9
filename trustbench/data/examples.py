"""Prompts with answers or labels, for probes, profiles and circuits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from trustbench.data.records import SUFFIXES, file_records, hub_records
from trustbench.data.tokens import special_token
from trustbench.errors import DataError, InputError, bad


class Example(NamedTuple):
    """A prompt, what should follow it or what it is, and what it must not be parted from."""

    prompt: str
    answer: str | None  # the text that follows the prompt, with its leading space if it has one
    label: Any  # a class or a number; None if there is none
    group: str  # examples of one group belong on one side of a split
    fields: dict[str, Any]  # what else the record held: template, subject, wrong, choices, ...


class ExampleBatch(NamedTuple):
    """Rows of tokens: prompt and answer, padded on one side. A model takes the first three."""

    input_ids: Tensor  # [B, T], int64
    attention_mask: Tensor  # [B, T], int64: 1 for tokens, 0 for padding
    position_ids: Tensor  # [B, T], int64: 0 at a row's first token, wherever it stands
    answer: Tensor  # [B, T], bool: the answer's tokens
    query: Tensor  # [B], int64: the column of the prompt's last token, which predicts the answer
    numbers: Tensor  # [B], int64: which examples these are


class Examples(Sequence[Example]):
    """Examples out of records; a sequence.

    Parameters
    ----------
    records : iterable of mappings
    prompt, answer, label, group : str
        The fields that hold these. Every record has a prompt, and an answer, a label or both; a
        label may be false or 0, but not null. Groups are given for all records or for none: then
        each is a group of its own.

    Attributes
    ----------
    grouped : bool
        Whether the records gave groups.

    Raises
    ------
    DataError
        Naming the record, when a field is missing or of the wrong kind; when there are none.
    """

    def __init__(
        self,
        records: Iterable[Mapping[str, Any]],
        *,
        prompt: str = "prompt",
        answer: str = "answer",
        label: str = "label",
        group: str = "group",
    ) -> None:
        named = ((f"record {i}", record) for i, record in enumerate(records))
        self._fill(named, (prompt, answer, label, group))

    @classmethod
    def read(
        cls,
        spec: str,
        *,
        prompt: str = "prompt",
        answer: str = "answer",
        label: str = "label",
        group: str = "group",
        split: str = "train",
    ) -> Self:
        """From a .jsonl, .jsonl.gz, .csv or .parquet file, or hf:NAME[:CONFIG] (and its `split`)."""
        if not spec.startswith("hf:") and not Path(spec).is_file():
            raise DataError(f"data={spec!r}: no such {', '.join(SUFFIXES)} file (or 'hf:NAME')")
        named = hub_records(spec, split) if spec.startswith("hf:") else file_records(Path(spec))
        examples = cls.__new__(cls)
        examples._fill(named, (prompt, answer, label, group))
        return examples

    def _fill(self, records: Iterable[tuple[str, Any]], names: tuple[str, ...]) -> None:
        if len(set(names)) < len(names):
            raise bad("fields", names, "four different names")
        found = [_example(where, record, names) for where, record in records]
        if not found:
            raise DataError("data: it holds no examples")
        without = [where for where, _, grouped in found if not grouped]
        self.grouped = not without
        if 0 < len(without) < len(found):
            raise DataError(
                f"data={without[0]}: expected a group in field {names[3]!r}, as others have"
            )
        self._examples = [
            example if grouped else example._replace(group=str(i))
            for i, (_, example, grouped) in enumerate(found)
        ]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, i: Any) -> Any:
        return self._examples[i]

    def batches(
        self,
        tokenizer: Any,
        rows: int,
        *,
        padding: Literal["left", "right"] = "right",
        answers: bool = True,
        prepend_bos: bool = False,
        context_length: int | None = None,
    ) -> Iterator[ExampleBatch]:
        """The examples as tokens, in their order.

        Parameters
        ----------
        tokenizer
            A transformers tokenizer.
        rows : int
            Examples a batch, at most.
        padding : "left" or "right"
            Left where a model goes on from the prompts.
        answers : bool
            Whether the answers stand behind the prompts.
        prepend_bos : bool
            Start every row with the tokenizer's BOS token. No other special token is added.
        context_length : int or None
            Tokens a row may have; None: any number.

        Raises
        ------
        InputError
            Naming the example: when the prompt or the answer has no tokens, the row is too long, or
            the tokenizer joins the prompt's end with the answer's beginning.
        """
        if rows < 1:
            raise bad("rows", rows, "an integer >= 1")
        if padding not in ("left", "right"):
            raise bad("padding", padding, "one of left, right")
        start = [special_token(tokenizer, "bos")] if prepend_bos else []
        for first in range(0, len(self), rows):
            ids, lengths = [], []
            for i, example in enumerate(self._examples[first : first + rows], first):
                prompt, whole = _tokens(tokenizer, example, answers, f"examples[{i}]")
                if context_length is not None and len(start) + len(whole) > context_length:
                    what = f"{len(start) + len(whole)} tokens"
                    raise bad(f"examples[{i}]", what, f"at most context_length={context_length}")
                ids.append(start + whole)
                lengths.append(len(start) + len(prompt))
            yield _batch(ids, lengths, first, padding == "left")


def _example(where: str, record: Any, names: tuple[str, ...]) -> tuple[str, Example, bool]:
    """(where, example, whether it has a group)."""
    if not isinstance(record, Mapping):
        raise DataError(f"data={where}: expected an object with fields, not {record!r}")
    prompt, answer, label, group = (record.get(name) for name in names)
    if not isinstance(prompt, str):
        raise DataError(f"data={where}: expected a text in field {names[0]!r}")
    if answer is not None and not isinstance(answer, str):
        raise DataError(f"data={where}: expected a text in field {names[1]!r}, not {answer!r}")
    if answer is None and label is None:
        raise DataError(f"data={where}: expected an answer in field {names[1]!r}, or {names[2]!r}")
    fields = {name: value for name, value in record.items() if name not in names}
    return where, Example(prompt, answer, label, str(group), fields), group is not None


def _tokens(
    tokenizer: Any, example: Example, answers: bool, name: str
) -> tuple[list[int], list[int]]:
    """(the prompt's tokens, those of the row)."""
    options = {"add_special_tokens": False, "verbose": False}
    prompt = tokenizer(example.prompt, **options).input_ids
    if not prompt:
        raise InputError(f"{name}: its prompt {example.prompt!r} has no tokens")
    if not answers or example.answer is None:
        return prompt, prompt
    whole = tokenizer(example.prompt + example.answer, **options).input_ids
    if whole[: len(prompt)] != prompt:
        raise InputError(
            f"{name}: the tokenizer joins the end of the prompt, {example.prompt[-12:]!r}, with the"
            f" beginning of the answer, {example.answer[:12]!r}; a space between them belongs to the"
            " answer"
        )
    if len(whole) == len(prompt):
        raise InputError(f"{name}: its answer {example.answer!r} has no tokens")
    return prompt, whole


def _batch(ids: list[list[int]], prompts: list[int], first: int, left: bool) -> ExampleBatch:
    B, T = len(ids), max(map(len, ids))
    length, prompt = torch.tensor([len(row) for row in ids]), torch.tensor(prompts)
    begin = T - length if left else torch.zeros_like(length)
    position = torch.arange(T) - begin[:, None]  # of a row's own tokens: 0 to its length
    real = (position >= 0) & (position < length[:, None])
    input_ids = torch.zeros(B, T, dtype=torch.int64)
    input_ids[real] = torch.tensor([token for row in ids for token in row])
    return ExampleBatch(
        input_ids=input_ids,
        attention_mask=real.long(),
        position_ids=position.clamp_min(0),
        answer=real & (position >= prompt[:, None]),
        query=begin + prompt - 1,
        numbers=torch.arange(first, first + B),
    )
