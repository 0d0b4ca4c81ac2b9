"""Documents from local files or a Hugging Face data set, one after the other, from any ordinal on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

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
            return self._from_hub(ordinal)
        return islice(self._from_files(), ordinal, None)

    def _from_files(self) -> Iterator[str]:
        for path in self.files:
            try:
                if path.name.endswith(".txt"):
                    yield from self._text(path)
                elif path.name.endswith(".parquet"):
                    yield from self._parquet(path)
                else:
                    yield from self._jsonl(path)
            except (OSError, UnicodeDecodeError, EOFError) as error:
                raise DataError(f"data={path}: not readable ({error})") from error

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

    def _jsonl(self, path: Path) -> Iterator[str]:
        opener: Any = gzip.open if path.name.endswith(".gz") else open
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise DataError(f"data={path}: line {number} is not JSON ({error})") from error
                yield self._text_of(record, f"{path}: line {number}")

    def _parquet(self, path: Path) -> Iterator[str]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise DataError(
                f"data={path}: parquet needs pyarrow: pip install 'trustbench[data]'"
            ) from error
        try:
            table = pyarrow.parquet.ParquetFile(path)
            if self.field not in table.schema_arrow.names:
                names = ", ".join(table.schema_arrow.names)
                raise DataError(f"data={path}: no column {self.field!r} (columns: {names})")
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=[self.field]):
                for value in batch.column(0).to_pylist():
                    yield self._text_of({self.field: value}, f"{path}: row {row}")
                    row += 1
        except pyarrow.ArrowException as error:
            raise DataError(f"data={path}: not readable as parquet ({error})") from error

    def _from_hub(self, ordinal: int) -> Iterator[str]:
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                f"data={self.spec}: needs datasets: pip install 'trustbench[data]'"
            ) from error
        _, name, *config = self.spec.split(":")
        try:
            rows = datasets.load_dataset(name, *config, split=self.split, streaming=True)
            for number, record in enumerate(rows.skip(ordinal), ordinal):
                yield self._text_of(record, f"{self.spec}: record {number}")
        except (OSError, ValueError) as error:
            raise DataError(f"data={self.spec}: cannot be streamed ({error})") from error

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
