"""Every op is held to its SPEC: from that alone come its arguments, and all that it must refuse.

python -m tests.ops.test_contracts writes docs/ops.md.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.spec import FLOATS, TEST_SHAPES, Follows, OpSpec, Shape

PAGE = Path(__file__).parents[2] / "docs" / "ops.md"
DTYPES = (
    torch.float16, *FLOATS, torch.complex64, torch.bool, torch.uint8, torch.int32, torch.int64,
)  # fmt: skip
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float64: "fp64", torch.float16: "fp16"}
# Arguments that stand only beside others.
BESIDE = {"copy": {"scalars"}, "copies": {"scalars"}}
# Arguments that may have any number of dimensions: their entries count, in order.
FLAT = {"sparse_adam": ("values",)}


class Op(NamedTuple):
    """A public function, and the SPEC of the file it stands in."""

    name: str
    call: Callable[..., Any]
    spec: OpSpec

    @property
    def main(self) -> bool:
        """Whether SPEC says what this one returns: others return it in another form."""
        return self.name.rstrip("_") == self.spec.name


def _ops() -> dict[str, Op]:
    functions = {n: f for n, f in vars(ops).items() if inspect.isfunction(f)}
    homes = {n: importlib.import_module(f.__module__) for n, f in functions.items()}
    return {n: Op(n, f, homes[n].SPEC) for n, f in functions.items() if hasattr(homes[n], "SPEC")}


OPS = _ops()
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


def sizes(shape: Shape, csr: bool) -> dict[str, int]:
    """What every name in a SPEC's shapes stands for."""
    N, d, F, k = shape
    lengths = torch.randint(0, k + 1, (N,)) if csr else torch.full((N,), k)
    T = min(N, 9)
    attention = {"B": 2, "H": 4, "H_kv": 2, "T": T, "S": T + 3, "D": min(d, 33), "M": 2}
    named = {"nnz": int(lengths.sum()), "rows": F, "R": N, "d_in": d, "d_out": d + 1}
    return shape._asdict() | named | attention


def terms(text: str, csr: bool) -> list[tuple[str, int]]:
    """A shape as (name, what is added); a name "" stands for nothing."""
    parts = (part.partition("+") for part in text.split(" or ")[-1 if csr else 0].split())
    return [("", int(n)) if n.isdigit() else (n, int(more or 0)) for n, _, more in parts]


def made(name: str, shape: list[int], dtype: torch.dtype, size: dict[str, int]) -> Tensor:
    """Normal numbers; whole ones are what an op may follow as addresses."""
    if dtype.is_floating_point:
        numbers = torch.randn(shape).to(dtype)
        return numbers.abs() if name in ("v", "values") or ".v_" in name else numbers
    if name == "row_offsets":
        cuts = torch.randint(0, size["nnz"] + 1, (shape[0] - 2,)) if shape[0] > 1 else torch.empty(0)
        ends = torch.tensor([0, size["nnz"]]) if shape[0] > 1 else torch.zeros(1)
        return torch.cat([ends, cuts]).long().sort().values
    below = {"indices": size["F"], "rows": size["N"], "targets": size["S"], "segments": 1}
    return torch.randint(0, below.get(name, 1) or 1, shape, dtype=dtype)


class Case:
    """Fitting arguments of an op: its required ones, and some optional ones."""

    def __init__(self, op: Op, shape: Shape, wanted: torch.dtype, optional: str | None) -> None:
        signature = inspect.signature(op.call).parameters
        required = {n for n, p in signature.items() if p.default is p.empty}
        self.heads = required | ({optional, *BESIDE.get(optional, ())} if optional else set())
        self.csr = not self.heads.isdisjoint({"row_offsets", "rows"})
        self.op, self.size = op, sizes(shape, self.csr)
        self.shapes = {
            name: terms(text, self.csr)
            for name, (text, _) in op.spec.tensors.items()
            if name.split(".")[0] in self.heads
        }
        self.wanted = wanted
        self.tensors = {name: self._made(name) for name in self.shapes}
        if code := [name for name in self.tensors if name.startswith("code.")]:
            indices = torch.randint(0, shape.F, (shape.N, shape.k), dtype=torch.int32)
            self.tensors |= zip(code, ops.transpose_code(indices, shape.F), strict=True)
        others = {"k": shape.k, "d_sae": shape.F, "room": shape.N * shape.F}
        self.others = {n: v for n, v in others.items() if n in self.heads - set(self.tensors)}
        self.kinds = typing.get_type_hints(op.call)

    def allowed(self, name: str, table: dict[str, Any] | None = None) -> tuple[torch.dtype, ...]:
        """Dtypes of a tensor beside the others."""
        dtypes = (table or self.op.spec.tensors)[name][1]
        if not isinstance(dtypes, Follows):
            return dtypes
        leader = self.op.spec.tensors[dtypes.tensor][1]
        assert not isinstance(leader, Follows), (
            f"{name} follows {dtypes.tensor}, which follows another"
        )
        return dtypes.allowed(self.wanted if self.wanted in leader else leader[0])

    def _made(self, name: str) -> Tensor:
        allowed = self.allowed(name)
        dtype = self.wanted if self.wanted in allowed else allowed[0]
        shape = [more + (self.size[size] if size else 0) for size, more in self.shapes[name]]
        return made(name, shape, dtype, self.size)

    def call(self, change: dict[str, Any] | None = None) -> Any:
        """Call the op, some arguments changed."""
        given: dict[str, Any] = dict(self.others)
        for name, tensor in (self.tensors | (change or {})).items():
            head, _, part = name.partition(".")
            given.setdefault(head, {})[part] = tensor
        for name in given.keys() - self.others.keys():
            parts = given[name]
            if parts.keys() == {""}:
                given[name] = parts[""]
            elif hasattr(kind := self.kinds[name], "_fields"):
                given[name] = kind(**parts)
            else:
                given[name] = tuple(parts.values())
        # The C++ kernels take a step's scalars as numbers.
        with ops.use("reference" if "scalars" in given else "auto"):
            return self.op.call(**given)

    def fake(self) -> Any:
        """What the op says beforehand of the shapes of its results."""
        mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
        with mode, ops.trusted():
            return self.call({name: mode.from_tensor(t) for name, t in self.tensors.items()})

    def refuses(self, change: dict[str, Any], *names: str) -> None:
        """One of the names must begin the error: "code.rows", "code" or "rows" of code.rows."""
        known = {n for name in names for n in (name, *name.split(".", 1))}
        start = rf"({'|'.join(map(re.escape, sorted(known)))})(\.(shape|dtype))?=.*: expected "
        with pytest.raises(InputError) as error:
            self.call(change)
        assert re.match(start, str(error.value)), f"{change}: {error.value}"


def cases(op: Op, shape: Shape, wanted: torch.dtype) -> Iterator[tuple[Case, list[str]]]:
    """The required arguments, then each optional tensor beside them; and which of them are new."""
    base = Case(op, shape, wanted, None)
    yield base, list(base.tensors)
    for head in dict.fromkeys(name.split(".")[0] for name in op.spec.tensors):
        if head in base.kinds and head not in base.heads:
            case = Case(op, shape, wanted, head)
            yield case, [name for name in case.tensors if name.split(".")[0] == head]


def outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result or ())


@every_op
def test_a_spec_names_the_tensors_of_its_op(op):
    spec = op.spec
    assert op.call.__module__.endswith(f".{spec.name}") and spec.definition and spec.ties
    assert spec.bytes(Shape(2048, 512, 16384, 32)) > 0
    kinds = typing.get_type_hints(op.call)
    kinds.pop("return")
    holding = [n for n, kind in kinds.items() if "Tensor" in str(kind) or hasattr(kind, "_fields")]
    heads = list(dict.fromkeys(name.split(".")[0] for name in spec.tensors))
    # One in another form (a padded code, the norm alone) may lack some.
    assert holding == (heads if op.main else [head for head in heads if head in kinds])
    for head in holding:
        if hasattr(kinds[head], "_fields"):
            parts = [n.partition(".")[2] for n in spec.tensors if n.split(".")[0] == head]
            assert tuple(parts) == kinds[head]._fields


@every_op
def test_results_are_those_of_the_spec_and_of_the_fake(op):
    for shape in TEST_SHAPES:
        for case, _ in (c for wanted in FLOATS for c in cases(op, shape, wanted)):
            fakes, results = outputs(case.fake()), outputs(result := case.call())
            for fake, real in zip(fakes, results, strict=True):
                assert fake.dtype == real.dtype and fake.ndim == real.ndim
                for told, size in zip(fake.shape, real.shape, strict=True):
                    # Only the data tells how many entries a CSR code has.
                    assert told == size if isinstance(told, int) else isinstance(result, ops.CSRCode)
                assert not real.isnan().any()  # torch.empty is full of NaN: see conftest.py
            if op.main:
                check_returns(case, result, results)


def check_returns(case: Case, result: Any, results: list[Tensor]) -> None:
    """Names, sizes and dtypes; a size that no argument has may be any, but one."""
    returns = case.op.spec.returns
    if hasattr(result, "_fields"):
        assert tuple(returns) == result._fields
    given = {name for shape in case.shapes.values() for name, _ in shape}
    known = {"": 0} | {name: case.size[name] for name in given | {"F", "k"} if name}
    for (name, (text, _)), tensor in zip(returns.items(), results, strict=True):
        expected = terms(text, case.csr)
        assert len(expected) == tensor.ndim, name
        for (size, more), length in zip(expected, tensor.shape, strict=True):
            assert known.setdefault(size, length - more) + more == length, name
        assert tensor.dtype == case.allowed(name, returns)[0], name


@every_op
def test_a_wrong_tensor_is_refused_by_name(op):
    for wanted in FLOATS:
        for case, new in cases(op, Shape(5, 7, 33, 3), wanted):
            for name in new:
                tensor = case.tensors[name]
                wrong = [3.0, "x", [[0.0]]]
                wrong += [tensor.to(t) for t in DTYPES if t not in case.allowed(name)]
                if name not in FLAT.get(op.spec.name, ()):
                    wrong += [tensor[..., None], tensor.flatten()[0]]
                for other in wrong:
                    case.refuses({name: other}, name)
                for at, (size, _) in enumerate(case.shapes[name]):
                    sharing = [n for n, s in case.shapes.items() if size in dict(s)]
                    if not size or len(sharing) > 1:
                        longer = list(tensor.shape)
                        longer[at] += 1
                        case.refuses({name: tensor.new_zeros(longer)}, *(sharing if size else [name]))


def page() -> str:
    """docs/ops.md."""
    lines = [
        "# Ops",
        "",
        "<!-- made by `python -m tests.ops.test_contracts`; a test holds the page to the SPECs -->",
        "",
        "What every op in `trustbench.ops` computes, takes and returns (→). N is the number of",
        "tokens, d the width of the activations, F the number of features, k the active features of",
        "a token. A code is [N, k], or [nnz] with `row_offsets`. Numbers and flags, and what an",
        "optional tensor changes, are in the docstrings.",
    ]
    for op in sorted((op for op in OPS.values() if op.main), key=lambda op: op.name):
        others = [f"`{o.name}`" for o in OPS.values() if o.spec is op.spec and not o.main]
        lines += ["", f"## {op.name}", "", f"`{op.spec.definition}`", ""]
        lines += ["| tensor | shape | dtype |", "| --- | --- | --- |", *rows(op)]
        lines += ["", f"Ties: {op.spec.ties.replace('none: ', 'none; ')}."]
        lines += [f"The same in another form: {', '.join(others)}."] * bool(others)
    return "\n".join(lines) + "\n"


def rows(op: Op) -> Iterator[str]:
    """Of a table, a row for neighbours of equal shape and dtype."""
    parameters = inspect.signature(op.call).parameters

    def cells(item: tuple[str, tuple[str, Any]]) -> tuple[str, str, str]:
        name, (text, of) = item
        shape = " or ".join(f"[{', '.join(part.split())}]" for part in text.split(" or "))
        names = [] if isinstance(of, Follows) else [SHORT.get(t, str(t)[6:]) for t in of]
        dtypes = of.words if isinstance(of, Follows) else " or ".join(names)
        given = parameters.get(name.split(".")[0])
        optional = given is not None and given.default is not given.empty
        return " (optional)" * optional, shape, dtypes

    for mark, table in (("", op.spec.tensors), ("→ ", op.spec.returns)):
        for (optional, shape, dtypes), items in itertools.groupby(table.items(), cells):
            names = ", ".join(f"`{name}`" for name, _ in items)
            yield f"| {mark}{names}{'' if mark else optional} | {shape} | {dtypes} |"


def test_the_page_of_ops_is_that_of_the_specs():
    assert PAGE.read_text() == page(), "python -m tests.ops.test_contracts"


if __name__ == "__main__":
    PAGE.write_text(page())
