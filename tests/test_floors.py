"""The house: imports point down, `import trustbench` is light, files stay readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trustbench"
# Each floor may import the floors named before it.
FLOORS = [
    {"waiting", "errors", "defaults", "__init__", "_C", "_cuda"},
    {"files", "devices", "fields", "commands"},
    {"team"},
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
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
