"""Documents from local files or a Hugging Face data set, one after the other, from any ordinal on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from trustbench.data.records import file_records, hub_records
from trustbench.errors import DataError

# A plain text file is one long text: a block of lines of about this many characters stands for a
# document, so that a part of the file can be held out and nothing has to be read whole.
BLOCK_CHARACTERS = 16_384
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")


class Documents:
    """The documents behind a data spec.

    Parameters
    ----------
    spec : str
        A .txt, .jsonl, .jsonl.gz or .parquet file; a directory or glob of them (sorted by name); or
        "hf:NAME" or "hf:NAME:CONFIG" for a Hugging Face data set, streamed.
    field : str
        The field or column that holds the text.
    split : str
        Of a Hugging Face data set.
    separator : str
        What stands between two documents of a .txt file. Empty: blocks of lines of about 16,384
        characters stand for documents.

    Raises
    ------
    DataError
        When nothing is found, or a file is unreadable, or a record has no such field.
    """

    def __init__(
        self, spec: str, *, field: str = "text", split: str = "train", separator: str = ""
    ) -> None:
        self.spec, self.field, self.split, self.separator = spec, field, split, separator
        self.files = [] if spec.startswith("hf:") else _find(spec)

    def starting_at(self, ordinal: int) -> Iterator[str]:
        """The documents from number `ordinal` (0 is the first) to the last."""
        if self.spec.startswith("hf:"):
            records = hub_records(self.spec, self.split, ordinal)
            return (self._text_of(record, where) for where, record in records)
        return islice(self._from_files(), ordinal, None)

    def _from_files(self) -> Iterator[str]:
        for path in self.files:
            if path.name.endswith(".txt"):
                try:
                    yield from self._text(path)
                except (OSError, UnicodeDecodeError) as error:
                    raise DataError(f"data={path}: not readable ({error})") from error
            else:
                for where, record in file_records(path, [self.field]):
                    yield self._text_of(record, where)

    def _text(self, path: Path) -> Iterator[str]:
        pending: list[str] = []
        size = 0
        with path.open(encoding="utf-8") as file:
            if self.separator:
                rest = ""
                while piece := file.read(1 << 20):
                    *whole, rest = (rest + piece).split(self.separator)
                    yield from whole
                yield rest
                return
            for line in file:
                pending.append(line)
                size += len(line)
                if size >= BLOCK_CHARACTERS:
                    yield "".join(pending)
                    pending, size = [], 0
        if pending:
            yield "".join(pending)

    def _text_of(self, record: Any, where: str) -> str:
        text = record.get(self.field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise DataError(f"data={where}: expected a text in field {self.field!r}")
        return text


def _find(spec: str) -> list[Path]:
    path = Path(spec)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.name.endswith(SUFFIXES)]
    elif any(c in spec for c in "*?["):
        base = Path(path.anchor) if path.is_absolute() else Path()
        files = sorted(base.glob(str(path.relative_to(path.anchor))))
    else:
        raise DataError(f"data={spec!r}: no such file, directory or glob (or 'hf:NAME')")
    files = [p for p in files if p.is_file()]
    if not files:
        raise DataError(f"data={spec!r}: holds no {', '.join(SUFFIXES)} file")
    for file in files:
        if not file.name.endswith(SUFFIXES):
            raise DataError(f"data={file}: expected one of {', '.join(SUFFIXES)}")
    return files
