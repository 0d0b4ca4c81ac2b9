"""Recorded figures: a JSON file each for what they depend on, a line each for what they are of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "records"
# Counts repeat exactly, so this is no noise: it is how much of a change goes without being recorded.
TOLERANCE = 0.03
UPDATE = "python -m benchmarks.guard --update"

# A name's figure, or several of them, each with a name of its own.
Figures = Mapping[str, float | Mapping[str, float]]


class Change(NamedTuple):
    """A figure that is not what was recorded; None: it is not there."""

    name: str
    recorded: float | None
    now: float | None

    @property
    def ratio(self) -> float:
        """now / recorded; infinite where one of the two is missing or 0."""
        if not self.recorded or self.now is None:
            return float("inf")
        return self.now / self.recorded

    def __str__(self) -> str:
        if self.recorded is None:
            said = "is not recorded"
        elif self.now is None:
            said = "is recorded and gone"
        elif self.recorded == 0:
            said = "was nothing"
        else:
            said = f"{100 * (self.ratio - 1):+.1f} %"
        return f"{_number(self.recorded):>14} {_number(self.now):>14}  {self.name}: {said}"


def changes(recorded: Figures, now: Figures, tolerance: float = TOLERANCE) -> list[Change]:
    """What differs by more than the tolerance, up or down, or is in one of the two only.

    A gain counts as well: unless it is recorded, it can be lost again without anybody noticing.
    """
    before, after = dict(_flat(recorded)), dict(_flat(now))
    found = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None or new is None or abs(new - old) > tolerance * old:
            found.append(Change(name, old, new))
    return found


def slower(recorded: Figures, now: Figures, bound: float) -> list[Change]:
    """What is more than `bound` times its record, or is in one of the two only."""
    found = changes(recorded, now, tolerance=0)
    return [change for change in found if change.ratio > bound]


def table(found: list[Change]) -> str:
    """Changes, for people."""
    return "\n".join([f"{'recorded':>14} {'now':>14}", *map(str, found)])


def path_of(what: str, version: str) -> Path:
    """Where the figures of so-and-so, made by that version of a compiler, are recorded."""
    return FOLDER / f"{what}-{version.replace(' ', '-')}.json"


def read(path: Path) -> dict[str, float | dict[str, float]] | None:
    """A record, or None where there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def write(path: Path, figures: Figures) -> list[Change]:
    """Records, and returns every change since the last record."""
    found = changes(read(path) or {}, figures, tolerance=0)
    lines = [f"  {json.dumps(name)}: {json.dumps(figures[name])}" for name in sorted(figures)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return found


def _flat(figures: Figures) -> Iterator[tuple[str, float]]:
    for name, figure in figures.items():
        if isinstance(figure, Mapping):
            for part, value in figure.items():
                yield f"{name}, {part}", value
        else:
            yield name, figure


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
