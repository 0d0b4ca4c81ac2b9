"""Records, one after the other, from JSON lines, CSV and Parquet files and Hugging Face data sets."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trustbench.errors import DataError

Records = Iterator[tuple[str, Any]]  # (where it stands, for an error's message; the record)
SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")


def file_records(path: Path, columns: list[str] | None = None) -> Records:
    """The records of a file, by its name's ending.

    Parameters
    ----------
    path : Path
        .jsonl, .jsonl.gz or .csv (with a header; all values are strings), each in UTF-8, or .parquet.
    columns : list of str or None
        Those that are wanted: of a Parquet file only these are read, and must be there.

    Raises
    ------
    DataError
        When it is not readable, or is none of these.
    """
    try:
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            yield from _jsonl(path)
        elif path.name.endswith(".csv"):
            yield from _csv(path)
        elif path.name.endswith(".parquet"):
            yield from _parquet(path, columns)
        else:
            raise DataError(f"data={path}: expected one of {', '.join(SUFFIXES)}")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise DataError(f"data={path}: not readable ({error})") from error


def hub_records(spec: str, split: str, first: int = 0) -> Records:
    """The records of "hf:NAME" or "hf:NAME:CONFIG", streamed, from number `first` on."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"data={spec}: needs datasets: pip install 'trustbench[data]'") from error
    _, name, *config = spec.split(":")
    try:
        rows = datasets.load_dataset(name, *config, split=split, streaming=True)
        for number, record in enumerate(rows.skip(first), first):
            yield f"{spec}: record {number}", record
    except (OSError, ValueError) as error:
        raise DataError(f"data={spec}: cannot be streamed ({error})") from error


def _jsonl(path: Path) -> Records:
    opener: Any = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"data={path}: line {number} is not JSON ({error})") from error
            yield f"{path}: line {number}", record


def _csv(path: Path) -> Records:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
            for row in rows:
                if row and len(row) != len(header):
                    raise DataError(
                        f"data={path}: line {rows.line_num} has {len(row)} values,"
                        f" not the header's {len(header)}"
                    )
                if row:
                    yield f"{path}: line {rows.line_num}", dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise DataError(f"data={path}: line {rows.line_num} is not CSV ({error})") from error


def _parquet(path: Path, columns: list[str] | None) -> Records:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"data={path}: parquet needs pyarrow: pip install 'trustbench[data]'"
        ) from error
    try:
        table = pyarrow.parquet.ParquetFile(path)
        names = table.schema_arrow.names
        for column in columns or []:
            if column not in names:
                raise DataError(f"data={path}: no column {column!r} (columns: {', '.join(names)})")
        row = 0
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for record in batch.to_pylist():
                yield f"{path}: row {row}", record
                row += 1
    except pyarrow.ArrowException as error:
        raise DataError(f"data={path}: not readable as parquet ({error})") from error
