"""What type checkers see: snippets of README and docs pass mypy, the first call has a type."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What snippets take for granted.
GIVEN = """\
import json
from collections.abc import Iterator
from typing import Any, assert_type

import numpy as np
import torch
from torch import Tensor

import trustbench as tb

model: Any
tokenizer: Any
acts: Any
x = x_hat = W_enc = b_enc = W_dec = b_dec = mask = input_ids = Tensor()


def activations() -> Iterator[dict[str, Tensor]]:
    yield {}


"""
FIRST_CALL = """
from trustbench.training import TrainResult

config = tb.TrainConfig(model="m", data="d", out="o", tokens=9, sae=tb.SAEConfig(d_sae=64))
result = tb.train(config, progress=False)
assert_type(result, TrainResult)
assert_type(result.saes["layers.3"], tb.SAE)
assert_type(result.finished, bool)
"""
MISTAKES = {
    "tb.train(3)\n": "[arg-type]",
    "tb.trian\n": "[attr-defined]",
    'tb.SAEConfig(d_sae="64")\n': "[arg-type]",
    "tb.SAEConfig(k=3)\n": "[call-arg]",
    'tb.SAEConfig(d_sae=64, l1_form="max")\n': "[arg-type]",
}


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```python[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def complaints(tmp_path_factory) -> dict[str, list[str]]:
    """mypy's errors by file, of all files in one run."""
    folder = tmp_path_factory.mktemp("snippets")
    texts = {f"{page.stem}_{i}": text for page in PAGES for i, text in enumerate(snippets(page), 1)}
    texts["first_call"] = FIRST_CALL
    texts |= {f"mistake_{i}": text for i, text in enumerate(MISTAKES, 1)}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(GIVEN + text)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(folder)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    found: dict[str, list[str]] = {name: [] for name in texts}
    for line in done.stdout.splitlines()[:-1]:
        stem = Path(line.split(":")[0]).stem
        assert stem in found, done.stdout  # an error of the package itself
        found[stem].append(line)
    assert done.stdout and not done.stderr, done.stderr
    return found


def test_every_snippet_passes(complaints):
    assert any(name.startswith("README") for name in complaints)
    wrong = [e for name, errors in complaints.items() if "mistake" not in name for e in errors]
    assert not wrong, "\n".join(wrong)


def test_mistakes_are_found(complaints):
    for i, (text, kind) in enumerate(MISTAKES.items(), 1):
        assert any(kind in error for error in complaints[f"mistake_{i}"]), text


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "trustbench" / "py.typed").is_file()
    assert '"trustbench" = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()
