"""Configs that check themselves: what a field may hold stands in its annotation.

@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Config):
    kind: Literal["linear", "mlp"] = "linear"                    # one of these names
    epochs: PositiveInt = 3                                      # an integer >= 1
    momentum: Annotated[float, Bounds(least=0, below=1)] = 0.9   # a number in [0, 1)
    family: Annotated[str, OneOf(FAMILIES)] = "topk"             # a name in a registry
    layers: Annotated[str | list[int], "'all', or layer numbers"] = "all"  # in words of its own
    sae: SAEConfig                                               # another config

    def check(self) -> None: ...                                 # what no field alone can tell
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from trustbench.errors import InputError, bad, nearest


class Bounds(NamedTuple):
    """The range of a number."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def hold(self, value: float) -> bool:
        """Whether a finite number is in the range."""
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def of(self, kind: type) -> str:
        """The expectation in words, of an int or a float."""
        left = f"({self.above}" if self.least is None else f"[{self.least}"
        right = f"{self.below})" if self.most is None else f"{self.most}]"
        if "None" not in left + right:
            return f"{'an integer' if kind is int else 'a number'} in {left}, {right}"
        signs = {">=": self.least, ">": self.above, "<=": self.most, "<": self.below}
        sides = [f" {sign} {bound}" for sign, bound in signs.items() if bound is not None]
        return ("an integer" if kind is int else "a finite number") + "".join(sides)


class OneOf(NamedTuple):
    """The names of a registry."""

    names: Collection[str]


class NonEmpty(NamedTuple):
    """Of a string that must not be empty."""


PositiveInt = Annotated[int, Bounds(least=1)]
NonNegativeInt = Annotated[int, Bounds(least=0)]
PositiveFloat = Annotated[float, Bounds(above=0)]
NonNegativeFloat = Annotated[float, Bounds(least=0)]
Fraction = Annotated[float, Bounds(least=0, most=1)]
NonEmptyStr = Annotated[str, NonEmpty()]


class Problem(NamedTuple):
    """What is wrong with a value: it, or the entry of it that is at fault, and what was expected."""

    value: Any
    expected: str


@dataclass(frozen=True)
class Config:
    """Base of every config: checked when it is made, and read from and written to files.

    Raises
    ------
    InputError
        When a field does not hold what its annotation says, or `check` refuses.
    """

    def __post_init__(self) -> None:
        for name, annotation in resolved(type(self)).items():
            if found := problem(getattr(self, name), annotation):
                raise bad(name, found.value, found.expected)
        self.check()

    def check(self) -> None:
        """InputError for what no field alone can tell."""

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed (and checked again)."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`.

        Raises
        ------
        InputError
            For an unknown field, with the nearest name; for missing fields, with all their names.
        """
        known = resolved(cls)
        for name in fields:
            if name not in known:
                raise InputError(f"{cls.__name__} has no field {name!r}{nearest(name, known)}")
        if missing := cls.missing(fields):
            raise InputError(f"{cls.__name__}: missing {', '.join(missing)}")
        return cls(**{name: _read(value, known[name]) for name, value in fields.items()})

    @classmethod
    def missing(cls, fields: Mapping[str, Any]) -> list[str]:
        """Fields without a default that are not among those given."""
        return [
            f.name
            for f in dataclasses.fields(cls)
            if f.name not in fields and f.default is f.default_factory is dataclasses.MISSING
        ]

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read a YAML or JSON file; InputError when it cannot be read."""
        return cls.from_dict(read_mapping(path))


def resolved(cls: type[Config]) -> dict[str, Any]:
    """The annotations of a config's fields, resolved."""
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def problem(value: Any, annotation: Any) -> Problem | None:
    """What is wrong with a value, by an annotation; None when it is right."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _noted(value, args[0], args[1:])
    if origin is Literal:
        return _chosen(value, args)
    if origin in (Union, UnionType):
        found = [problem(value, each) for each in args]
        words = dict.fromkeys(p.expected for p in found if p)
        return None if None in found else Problem(value, " or ".join(words))
    if origin in (list, tuple, dict):
        if not isinstance(value, origin):
            return Problem(value, "a mapping" if origin is dict else "a list")
        return next((p for entry, kind in _entries(value, args) if (p := problem(entry, kind))), None)
    return _plain(value, annotation)


def _entries(value: Any, args: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """Every entry of a list, tuple[T, ...] or dict, and its annotation."""
    if isinstance(value, dict):
        return [pair for item in value.items() for pair in zip(item, args, strict=True)]
    if args[1:] not in ((), (...,)):
        raise NotImplementedError("a config's tuple has entries of one kind: tuple[T, ...]")
    return [(entry, args[0]) for entry in value]


def _plain(value: Any, kind: Any) -> Problem | None:
    if kind is Any:
        return None
    if kind in (int, float):
        return _number(value, kind, Bounds())
    words = {str: "a string", bool: "true or false", type(None): "nothing"}
    # A name that starts with an acronym is spelled: an SAEConfig.
    vowels = "AEFHILMNORSX" if kind.__name__[:2].isupper() else "AEIO"
    article = "an" if kind.__name__[0] in vowels else "a"
    expected = words.get(kind, f"{article} {kind.__name__}")
    return None if isinstance(value, kind) else Problem(value, expected)


def _number(value: Any, kind: type, bounds: Bounds) -> Problem | None:
    """A number that is in its range; a bool is none, and an integer is one."""
    if kind is float and (isinstance(value, bool) or not isinstance(value, (int, float))):
        return Problem(value, "a number")
    if kind is int and type(value) is not int:
        return Problem(value, bounds.of(kind))
    return None if bounds.hold(value) else Problem(value, bounds.of(kind))


def _noted(value: Any, kind: Any, notes: tuple[Any, ...]) -> Problem | None:
    """By an annotation with notes: bounds, names, or its own words for what is expected."""
    found = problem(value, kind)
    for note in notes:
        if isinstance(note, Bounds):
            found = _number(value, kind, note)
        elif isinstance(note, OneOf):
            found = found or _chosen(value, note.names)
        elif isinstance(note, NonEmpty) and not value:
            found = Problem(value, "a non-empty string")
        elif isinstance(note, str) and found:
            found = Problem(value, note)
    return found


def _chosen(value: Any, names: Collection[Any]) -> Problem | None:
    if isinstance(value, str) and value in names:
        return None
    return Problem(value, f"one of {', '.join(names)}{nearest(value, names)}")


def _read(value: Any, annotation: Any) -> Any:
    """A value as a file holds it: configs are mappings there, and tuples are lists."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _read(value, args[0])
    if origin in (Union, UnionType):
        return next((read for each in args if not problem(read := _read(value, each), each)), value)
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        return origin(_read(entry, args[0]) for entry in value)
    if origin is dict and isinstance(value, dict):
        return {name: _read(entry, args[1]) for name, entry in value.items()}
    if isinstance(annotation, type) and issubclass(annotation, Config) and isinstance(value, dict):
        return annotation.from_dict(value)
    return value


def read_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Names and values from a YAML or JSON file.

    Raises
    ------
    InputError
        When it cannot be read, or holds something else.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML takes 2e-4, without a dot, for a string; YAML 1.2 and people do not."""

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = json.loads(text) if Path(path).suffix == ".json" else yaml.load(text, Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"config={str(path)!r}: not readable ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"config={str(path)!r}: expected a mapping of field names to values")
    return found
