"""Every shipped kernel compiles for every target with no GPU, within the limits beside it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kernels.resources import builds

ROOT = Path(__file__).parents[2]


def described(place: tuple[str, int]) -> str:
    module, i = place
    build = importlib.import_module(f"trustbench.kernels.triton.{module}").BUILDS[i]
    return f"{build.kernel.fn.__name__}: {build.name}"


@pytest.fixture(scope="module")
def figures() -> dict[tuple[str, str, str], list[dict]]:
    """What the tools read, by (module, kernel, name): compiled in a process without interpreter."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.resources"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[tuple[str, str, str], list[dict]] = {}
    for figure in json.loads(run.stdout):
        key = figure["module"], figure["kernel"], figure["name"]
        found.setdefault(key, []).append(figure)
    return found


@pytest.mark.parametrize("place", list(builds()), ids=described)
def test_stays_within_its_limits(place, figures):
    module, i = place
    build = importlib.import_module(f"trustbench.kernels.triton.{module}").BUILDS[i]
    found = figures[module, build.kernel.fn.__name__, build.name]
    assert [figure["target"] for figure in found] == list(build.targets)
    for figure in found:
        assert figure["registers"] <= build.limits.registers, figure
        assert figure["spills"] <= build.limits.spills.get(figure["target"], 0), figure
        assert figure["shared"] <= build.limits.shared, figure
        if build.matmul:
            assert figure["tensor"] > 0, figure
            if figure["target"] == 90:
                assert figure["wgmma"] > 0, figure


def test_every_kernel_is_guarded():
    """No launcher starts a kernel that has no build here."""
    import trustbench.kernels.triton as package

    guarded = {described(place).partition(":")[0] for place in builds()}
    written: Sequence[str] = [
        line.removeprefix("def ").partition("(")[0]
        for path in package.__path__
        for file in Path(path).glob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith("def ") and line.partition("(")[0].endswith("_kernel")
    ]
    assert set(written) == guarded
