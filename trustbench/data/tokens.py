"""Documents as rows of tokens: packed, resumable, with a part held out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from trustbench.data.documents import Documents
from trustbench.errors import DataError, bad

Part = Literal["train", "heldout", "all"]


class TokenBatch(NamedTuple):
    """Rows of tokens, padded on the right."""

    input_ids: Tensor  # [B, T], int64
    mask: Tensor  # [B, T], bool: False for padding and for an added beginning-of-sequence token


class TokenStream:
    """An endless (or one-epoch) iterator of `TokenBatch`.

    A row holds tokens of one document only, so that nothing leaks from one document into another;
    a document longer than a row continues in the next row. With `pack_documents` documents follow
    each other in a row, an end-of-sequence token between them, and see each other.

    Parameters
    ----------
    documents : Documents
    tokenizer
        A transformers tokenizer.
    context_length : int
        Tokens a row, at most.
    rows : int
        Rows a batch.
    part : "train", "heldout" or "all"
        Every n-th document is held out, n = round(1 / heldout_fraction).
    heldout_fraction : float in [0, 0.5]
    pack_documents, prepend_bos : bool
        `prepend_bos` starts every row with the tokenizer's BOS token, which is masked.
    repeat : bool
        Start again when the documents end; otherwise stop.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Any,
        context_length: int,
        rows: int,
        *,
        part: Part = "all",
        heldout_fraction: float = 0.0,
        pack_documents: bool = False,
        prepend_bos: bool = False,
        repeat: bool = True,
    ) -> None:
        if context_length < 2:
            raise bad("context_length", context_length, "an integer >= 2")
        if rows < 1:
            raise bad("rows", rows, "an integer >= 1")
        if not 0 <= heldout_fraction <= 0.5:
            raise bad("heldout_fraction", heldout_fraction, "a number in [0, 0.5]")
        if part == "heldout" and heldout_fraction == 0:
            raise bad("heldout_fraction", heldout_fraction, "a number > 0 to have a held-out part")
        self.documents, self.tokenizer = documents, tokenizer
        self.rows, self.part, self.repeat = rows, part, repeat
        self.heldout_every = round(1 / heldout_fraction) if heldout_fraction > 0 else 0
        self.pack_documents = pack_documents
        self.bos = special_token(tokenizer, "bos") if prepend_bos else None
        self.eos = special_token(tokenizer, "eos") if pack_documents else None
        self.length = context_length - (self.bos is not None)
        # The position: the next document, how many of its rows were used, tokens waiting for a row.
        self.epoch, self.document, self.used_rows = 0, 0, 0
        self.carry: list[int] = []
        self._iterator: Iterator[list[int]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, ready for JSON; exact."""
        return {
            "epoch": self.epoch,
            "document": self.document,
            "used_rows": self.used_rows,
            "carry": list(self.carry),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.epoch, self.document = state["epoch"], state["document"]
        self.used_rows, self.carry = state["used_rows"], list(state["carry"])
        self._iterator = None

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        if self._iterator is None:
            self._iterator = self._row_iterator()
        rows = [row for _, row in zip(range(self.rows), self._iterator, strict=False)]
        if not rows:
            raise StopIteration
        start = [] if self.bos is None else [self.bos]
        width = max(map(len, rows)) + len(start)
        input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            input_ids[i, : len(start) + len(row)] = torch.tensor(start + row)
            mask[i, len(start) : len(start) + len(row)] = True
        return TokenBatch(input_ids, mask)

    def _row_iterator(self) -> Iterator[list[int]]:
        while True:
            empty = self.document == 0 and self.used_rows == 0
            for text in self.documents.starting_at(self.document):
                if self._wanted(self.document):
                    for row in self._document_rows(text):
                        empty = False
                        # Counted before it is handed out: the state then points past it.
                        self.used_rows += 1
                        yield row
                self.document += 1
                self.used_rows = 0
            if empty and not self.carry:
                raise DataError(
                    f"data={self.documents.spec!r}: no tokens in its {self.part!r} part"
                    f" ({self.document} documents)"
                )
            self.epoch += 1
            self.document = 0
            if not self.repeat:
                return

    def _wanted(self, ordinal: int) -> bool:
        if self.part == "all" or not self.heldout_every:
            return True
        heldout = ordinal % self.heldout_every == self.heldout_every - 1
        return heldout == (self.part == "heldout")

    def _document_rows(self, text: str) -> Iterator[list[int]]:
        """The rows of the current document that were not used yet."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if not self.pack_documents:
            for start in range(self.used_rows * self.length, len(ids), self.length):
                yield ids[start : start + self.length]
            return
        # When resuming inside a document, `carry` held the tokens before its first row.
        joined = [*self.carry, *ids, self.eos]
        whole = len(joined) // self.length
        for row in range(self.used_rows, whole):
            yield joined[row * self.length : (row + 1) * self.length]
        self.carry = joined[whole * self.length :]


def special_token(tokenizer: Any, name: str) -> int:
    """The id of the tokenizer's "bos" or "eos" token; InputError if it has none."""
    token = getattr(tokenizer, f"{name}_token_id")
    if token is None:
        raise bad(f"{name}_token", None, f"a tokenizer with a {name.upper()} token")
    return token
