"""Configs checked from their annotations: every kind of field, and the words of every refusal."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from jsonargparse import ArgumentParser

from trustbench.errors import InputError
from trustbench.fields import (
    Bounds,
    Config,
    Fraction,
    NonEmptyStr,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    PositiveInt,
)

FAMILIES = {"topk": 1, "gated": 2}


@dataclass(frozen=True, kw_only=True)
class Part(Config):
    width: PositiveInt = 1


@dataclass(frozen=True, kw_only=True)
class Whole(Config):
    """Every kind of field.

    Parameters
    ----------
    name
        Of it.
    """

    name: NonEmptyStr
    kind: Literal["linear", "cosine"] = "linear"
    family: Annotated[str, OneOf(FAMILIES)] = "topk"
    count: int = 0
    size: NonNegativeInt = 0
    chosen: Annotated[int, Bounds(least=1, most=3)] = 1
    rate: float = 0.0
    weight: NonNegativeFloat = 0.0
    scale: PositiveFloat = 1.0
    share: Fraction = 0.5
    low: Annotated[float, Bounds(below=0)] = -1.0
    open: Annotated[float, Bounds(above=0, below=1)] = 0.5
    flag: bool = False
    free: Any = None
    maybe: int | None = None
    layers: Annotated[str | list[int], "'all', or layer numbers"] = "all"
    sinks: list[Literal["wandb", "trackio"]] = field(default_factory=list)
    sizes: tuple[PositiveInt, ...] = ()
    table: dict[str, int] = field(default_factory=dict)
    part: Part = Part()
    parts: list[Part] = field(default_factory=list)

    def check(self) -> None:
        if self.size > 100:
            raise InputError("too large")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "name='': expected a non-empty string"),
        ({"name": 3}, "name=3: expected a string"),
        ({"kind": "exp"}, "kind='exp': expected one of linear, cosine"),
        ({"kind": "linaer"}, "kind='linaer': expected one of linear, cosine; did you mean 'linear'?"),
        ({"kind": ["linear"]}, "kind=['linear']: expected one of linear, cosine"),
        ({"family": "top"}, "family='top': expected one of topk, gated; did you mean 'topk'?"),
        ({"family": 3}, "family=3: expected a string"),
        ({"count": True}, "count=True: expected an integer"),
        ({"count": 1.0}, "count=1.0: expected an integer"),
        ({"size": -1}, "size=-1: expected an integer >= 0"),
        ({"size": 101}, "too large"),
        ({"chosen": 4}, "chosen=4: expected an integer in [1, 3]"),
        ({"rate": "fast"}, "rate='fast': expected a number"),
        ({"rate": float("nan")}, "rate=nan: expected a finite number"),
        ({"weight": float("inf")}, "weight=inf: expected a finite number >= 0"),
        ({"weight": True}, "weight=True: expected a number"),
        ({"scale": 0}, "scale=0: expected a finite number > 0"),
        ({"share": 1.5}, "share=1.5: expected a number in [0, 1]"),
        ({"low": 0.0}, "low=0.0: expected a finite number < 0"),
        ({"open": 1.0}, "open=1.0: expected a number in (0, 1)"),
        ({"flag": "no"}, "flag='no': expected true or false"),
        ({"flag": 1}, "flag=1: expected true or false"),
        ({"maybe": "x"}, "maybe='x': expected an integer or nothing"),
        ({"layers": [1, "a"]}, "layers=[1, 'a']: expected 'all', or layer numbers"),
        ({"sinks": "wandb"}, "sinks='wandb': expected a list"),
        ({"sinks": ["wand"]}, "sinks='wand': expected one of wandb, trackio; did you mean 'wandb'?"),
        ({"sizes": (1, 0)}, "sizes=0: expected an integer >= 1"),
        ({"table": [1]}, "table=[1]: expected a mapping"),
        ({"table": {"a": "b"}}, "table='b': expected an integer"),
        ({"part": None}, "part=None: expected a Part"),
        ({"part": {"widht": 1}}, "Part has no field 'widht'; did you mean 'width'?"),
        ({"parts": [{"width": 0}]}, "width=0: expected an integer >= 1"),
        ({"nmae": "x"}, "Whole has no field 'nmae'; did you mean 'name'?"),
        ({"zzz": 1}, "Whole has no field 'zzz'"),
    ],
)
def test_every_refusal_is_one_sentence(fields, message):
    with pytest.raises(InputError) as caught:
        Whole.from_dict({"name": "x"} | fields)
    assert str(caught.value) == message


def test_missing_fields_are_named():
    with pytest.raises(InputError, match=r"^Whole: missing name$"):
        Whole.from_dict({"count": 3})


FULL = {
    "name": "x", "kind": "cosine", "family": "gated", "rate": 3, "layers": [1], "sinks": ["wandb"],
    "sizes": [1, 2], "table": {"a": 1}, "part": {"width": 2}, "parts": [{"width": 3}, {}], "maybe": 1,
}  # fmt: skip


def test_files_and_round_trip(tmp_path):
    whole = Whole.from_dict(FULL)
    assert whole.part == Part(width=2) and whole.parts == [Part(width=3), Part()]
    assert whole.sizes == (1, 2)
    assert Whole.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    (tmp_path / "c.json").write_text(json.dumps(FULL))
    assert Whole.from_file(tmp_path / "c.json") == whole
    assert whole.replace(count=3).count == 3
    with pytest.raises(InputError, match="count=True"):
        whole.replace(count=True)


def test_a_config_is_not_changed_after_its_check():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Whole(name="x").count = 3  # type: ignore[misc]


def test_the_command_line_reads_the_same_annotations():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Whole)
    flags = ["--name=x", "--sizes=[1, 2]", "--part.width=3", "--sinks=[wandb]", "--share=0.25"]
    found = Whole.from_dict(parser.parse_args(flags).as_dict())
    assert found == Whole(name="x", sizes=(1, 2), part=Part(width=3), sinks=["wandb"], share=0.25)
