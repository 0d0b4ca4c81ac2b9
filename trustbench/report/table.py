"""The one format of results: `<name>.jsonl`, one flat row a line.

A row is {column: value}. Keys (run, hook_point, tokens, ...) and measurements stand side by side; a
value is a number, a string, a bool, None, or a short list of these. None means that a value is not
defined, and so does NaN, which JSON cannot write: it becomes None as soon as it enters a table, and
a table in memory equals the table read back from its file. An infinity is written as 1e999, which
every JSON reader takes for one.

Where a table came from stands beside it, in `<name>.about.json` (see report.provenance).
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trustbench import files
from trustbench.errors import DataError, InputError, bad

Row = dict[str, Any]


class Table:
    """Rows of results. Rows need not have the same columns.

    Parameters
    ----------
    rows : iterable of mappings from column to value

    Raises
    ------
    InputError
        For a column that is not a string, or a value that is not a number, string, bool, None or a
        flat list of these.

    Examples
    --------
    >>> table = Table([{"layer": 0, "fvu": 0.25}, {"layer": 1, "fvu": float("nan")}])
    >>> table["fvu"]
    [0.25, None]
    >>> table.where(layer=1)[0]
    {'layer': 1, 'fvu': None}
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._rows = [_checked(row) for row in rows]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Table:
        """Read a file of rows.

        A last line without its line break is left out: it is being written, or its writer was killed.

        Raises
        ------
        DataError
            When the file is missing, or a line is not a row; the message names the line.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not readable as a table ({error})") from error
        table = cls()
        for number, line in enumerate(lines, 1):
            try:
                table.append(json.loads(line))
            except (ValueError, AttributeError) as error:  # no JSON, no object, nested
                raise DataError(f"{path}, line {number}: not a row of results ({error})") from error
        return table

    def write(self, path: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> None:
        """Write all rows to `path` (`<name>.jsonl`), and `about` to `<name>.about.json` beside it.

        Each file is written whole or not at all.
        """
        files.atomic_write_text(path, "".join(map(_line, self._rows)))
        if about is not None:
            write_about(path, about)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row at the end."""
        self._rows.append(_checked(row))

    def where(self, test: Callable[[Row], Any] | None = None, /, **equal: Any) -> Table:
        """The rows that pass `test` and whose columns equal the values given, in order."""
        found = Table()
        for row in self._rows:
            same = all(row.get(name) == value for name, value in equal.items())
            if same and (test is None or test(row)):
                found._rows.append(row)
        return found

    def pivot(self, rows: str, columns: str, values: str) -> Table:
        """One row for each value of column `rows`, one column for each value of column `columns`.

        The first column bears the name of `rows`, the others the values of `columns` as strings; the
        cells are the values of column `values`, None where no row has the pair.

        Raises
        ------
        InputError
            When two rows have the same pair.
        """
        head = [str(value) for value in self.unique(columns)]
        found = {value: {rows: value, **dict.fromkeys(head)} for value in self.unique(rows)}
        filled = set()
        for row in self._rows:
            if row.get(rows) is None or row.get(columns) is None:
                continue
            pair = row[rows], str(row[columns])
            if pair in filled:
                raise bad(values, pair, f"one row for each pair of {rows} and {columns}")
            filled.add(pair)
            found[pair[0]][pair[1]] = row.get(values)
        return Table(found.values())

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in the order in which they first appear."""
        return list(dict.fromkeys(name for row in self._rows for name in row))

    def unique(self, column: str) -> list[Any]:
        """The different values of a column without None, in the order in which they first appear."""
        return [value for value in dict.fromkeys(self[column]) if value is not None]

    def text(self, columns: Sequence[str] | None = None) -> str:
        """Rows as lines for a terminal; all columns but those that hold lists, or the given ones."""
        if columns is None:
            columns = [c for c in self.columns if not any(isinstance(v, list) for v in self[c])]
        body = [[_cell(row.get(column)) for column in columns] for row in self._rows]
        widths = [max(map(len, cells)) for cells in zip(columns, *body, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
            for cells in [columns, *body]
        )

    def to_pandas(self) -> Any:
        """A pandas.DataFrame. InputError when pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise InputError("to_pandas needs pandas: pip install pandas") from error
        return pandas.DataFrame(self._rows, columns=self.columns)

    def write_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file, a column a column. InputError when pyarrow is not installed."""
        try:
            from pyarrow import Table as ArrowTable
            from pyarrow import parquet
        except ImportError as error:
            raise InputError("write_parquet needs pyarrow: pip install 'trustbench[data]'") from error
        table = ArrowTable.from_pydict({name: self[name] for name in self.columns})
        with files.replacing(path) as temporary:
            parquet.write_table(table, temporary)

    def __getitem__(self, key: int | str) -> Any:
        """table["fvu"]: a column as a list, None where a row lacks it; table[0]: a row."""
        if isinstance(key, int):
            return self._rows[key]
        if self._rows and not any(key in row for row in self._rows):
            raise bad("column", key, f"one of: {', '.join(self.columns)}")
        return [row.get(key) for row in self._rows]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._rows == other._rows

    __hash__ = None  # type: ignore[assignment]  # rows can be added

    def __repr__(self) -> str:
        return f"Table({len(self)} rows: {', '.join(self.columns)})"


class TableWriter:
    """Appends rows to a file while a job runs.

    Parameters
    ----------
    path : Path
    position : int
        Bytes of the file to keep. A job that resumes gives the `position` of its checkpoint: rows
        written after it are cut off, and the file reads as if the job had never stopped.

    Attributes
    ----------
    position : int
        Size of the file in bytes.
    """

    def __init__(self, path: str | os.PathLike[str], position: int = 0) -> None:
        # Unbuffered: nothing is left to be written when a full disk ends the job.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._file.truncate(position)
        self.position = position

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row. OSError when the disk is full."""
        data = _line(_checked(row)).encode()
        if self._file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.position += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def about_path(path: str | os.PathLike[str]) -> Path:
    """`<name>.about.json` of `<name>.jsonl`."""
    return Path(path).with_suffix(".about.json")


def write_about(path: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
    """Write where the table at `path` comes from, before or beside the table itself."""
    files.atomic_write_json(about_path(path), about)


def _checked(row: Mapping[str, Any]) -> Row:
    found: Row = {}
    for name, value in row.items():
        if not isinstance(name, str):
            raise bad("column", name, "a string")
        if isinstance(value, list | tuple):
            found[name] = [_scalar(name, item) for item in value]
        else:
            found[name] = _scalar(name, value)
    return found


def _scalar(name: str, value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    raise bad(name, value, "a number, a string, a bool, None or a flat list of these")


def _line(row: Row) -> str:
    cells = (f"{_json(name)}: {_json(value)}" for name, value in row.items())
    return f"{{{', '.join(cells)}}}\n"


def _json(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_json, value))}]"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return json.dumps(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
