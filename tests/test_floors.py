"""The house: imports point down, `import trustbench` is light, files stay readable."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trustbench.sae.families import FAMILIES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trustbench"
# Each floor may import the floors named before it.
FLOORS = [
    {"waiting", "errors", "defaults", "__init__", "_C", "_cuda"},
    {"files", "devices", "fields", "commands"},
    {"team", "tuned"},
    {"kernels"},
    {"ops"},
    {"data", "report"},
    {"models"},
    {"sae"},
    {"buffer"},
    {"activations"},
    {"steps", "attention"},
    {"training", "evals"},
    {"studies", "installation", "benchmarking"},
    {"cli"},
    {"__main__"},
]
HEIGHT = {name: i for i, names in enumerate(FLOORS) for name in names}
# Beside each other on one floor, but not importing each other.
APART = [
    {"training", "evals"},
    {"steps", "attention"},
    {"data", "models"},
    {"models", "sae"},
    {"models", "buffer"},
    {"data", "buffer"},
]
SOURCES = sorted(PACKAGE.rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))


def house(path: Path) -> str:
    """A source's path in the package; kernels/triton is installed into it."""
    return path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).as_posix()


def imported_parts(path: Path) -> set[str]:
    """Top-level parts of trustbench that a file imports, wherever in the file."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "trustbench":
                names = [f"trustbench.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("trustbench."):
                parts.add(name.split(".")[1])
    return parts


@pytest.mark.parametrize("path", [*SOURCES, *KERNELS], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    part = house(path).split("/")[0].removesuffix(".py")
    if part == "__init__":
        pytest.skip("the package's own names are imported on first use")
    for other in imported_parts(path) - {part}:
        other = other if other in HEIGHT else "__init__"
        assert HEIGHT[other] < HEIGHT[part], f"{part} imports {other}"
        assert {part, other} not in APART


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_documented_and_short(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 400


# Who writes JSON other than results, and what.
JSON = {
    "activations/cache.py": "the index of a cache",
    "attention/head_attention.py": "the index of captured layers",
    "files.py": "atomic_write_json itself",
    "tuned.py": "the fastest configurations of kernels",
    "report/table.py": "results",
    "sae/model.py": "an SAE's config",
    "training/checkpoint.py": "a checkpoint's state",
    "training/loop.py": "a run's config",
}


def called(path: Path) -> Iterator[str]:
    """Names of what a file calls: `f`, or `f` of `a.b.f`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            yield getattr(function, "attr", None) or getattr(function, "id", "")


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules, and of what is taken from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_results_are_written_by_tables_alone():
    writers = {"dump", "dumps", "atomic_write_json"}
    assert {house(p) for p in [*SOURCES, *KERNELS] if writers & set(called(p))} == set(JSON)


def test_figures_are_drawn_in_the_one_style():
    """matplotlib is imported by report/style.py, and by files of the name figures.py above it."""
    for path in [*SOURCES, *KERNELS]:
        if any(name.split(".")[0] == "matplotlib" for name in imported(path)):
            above = HEIGHT[house(path).split("/")[0]] > HEIGHT["report"]
            allowed = house(path) == "report/style.py" or (path.name == "figures.py" and above)
            assert allowed, house(path)


def test_a_familys_name_is_compared_nowhere_but_in_its_room():
    """What differs between families of SAEs stands in sae/families; all else asks a Family."""
    for path in SOURCES:
        if house(path).startswith("sae/families/"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare | ast.Match):
                names = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
                fields = {getattr(side, "attr", "") for side in sides}
                where = f"{house(path)}:{node.lineno}"
                assert not names & set(FAMILIES) and "activation" not in fields, where


def test_kernels_are_called_nowhere_but_from_ops():
    for path in SOURCES:
        if house(path).startswith("ops/"):
            continue
        assert not any(n.startswith("trustbench.kernels.triton") for n in imported(path)), path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called_on = getattr(node.func.value, "id", "")
                assert (called_on, node.func.attr) != ("dispatch", "triton"), path


def test_no_circle_inside_a_room():
    """Among the files of a room; what is imported for type checkers alone is none."""
    graph = {module_of(path): set(imported_at_run_time(path)) for path in SOURCES}
    graph = {m: {other for other in found if other in graph} for m, found in graph.items()}

    def walk(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above[above.index(module) :], module))
        if module not in done:
            room = module.split(".")[:2]
            for other in sorted(graph[module]):
                if other.split(".")[:2] == room:
                    walk(other, (*above, module))
            done.add(module)

    done: set[str] = set()
    for module in graph:
        walk(module, ())


def module_of(path: Path) -> str:
    """trustbench.room.file; a package's own file is the package."""
    return ".".join(("trustbench", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    )


def imported_at_run_time(path: Path) -> Iterator[str]:
    """Modules that a file imports, those below TYPE_CHECKING left out."""
    tree = ast.parse(path.read_text())
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing:
            # A file that takes its sibling by way of their package does not need the package.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            files = [n for n in names if (ROOT / (n.replace(".", "/") + ".py")).is_file()]
            yield from files or [node.module]


def test_no_study_imports_another():
    for path in (PACKAGE / "studies").glob("*/**/*.py"):
        own = path.relative_to(PACKAGE / "studies").parts[0]
        for name in imported(path):
            if name.startswith("trustbench.studies."):
                other = name.split(".")[2]
                assert other == own or not (PACKAGE / "studies" / other).is_dir(), path


@pytest.mark.parametrize("room", ["tests", "benchmarks"])
def test_the_package_imports_neither_tests_nor_benchmarks(room):
    for path in [*SOURCES, *KERNELS]:
        assert room not in {name.split(".")[0] for name in imported(path)}, path
        assert not re.search(rf"""import_module\(["']{room}""", path.read_text()), path


def test_import_is_light():
    code = (
        "import sys, trustbench; trustbench.ops; trustbench.SAE;"
        "heavy = {'triton', 'transformers', 'matplotlib', 'datasets', 'pyarrow'} & set(sys.modules);"
        "import torch; assert not heavy, heavy; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_are_there():
    import trustbench as tb

    assert set(tb.__all__) <= set(dir(tb)) and callable(tb.train)
    assert all(getattr(tb, name) is not None for name in tb.__all__)
    assert tb.ActivationBuffer and tb.SAE and tb.SAEConfig and tb.ops.encode_topk
    with pytest.raises(AttributeError, match="nothing"):
        _ = tb.nothing
