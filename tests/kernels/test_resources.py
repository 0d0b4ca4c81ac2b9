"""Every shipped kernel compiles for every target with no GPU, within the limits beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.guard import records
from benchmarks.guard.triton import Place, build_of, builds, measured, named, version


def described(place: Place) -> str:
    build = build_of(place)
    return f"{build.kernel.fn.__name__}: {build.name}"


@pytest.fixture(scope="module")
def figures() -> dict[tuple[str, str, str], list[dict]]:
    """What the tools read, by (module, kernel, name): compiled in a process without interpreter."""
    found: dict[tuple[str, str, str], list[dict]] = {}
    for figure in measured():
        key = figure["module"], figure["kernel"], figure["name"]
        found.setdefault(key, []).append(figure)
    return found


@pytest.mark.parametrize("place", list(builds()), ids=described)
def test_stays_within_its_limits(place, figures):
    build = build_of(place)
    found = figures[place[0], build.kernel.fn.__name__, build.name]
    assert [figure["target"] for figure in found] == list(build.targets)
    for figure in found:
        assert figure["registers"] <= build.limits.registers, figure
        assert figure["mix"]["spills"] <= build.limits.spills.get(figure["target"], 0), figure
        assert figure["shared"] <= build.limits.shared, figure
        if build.matmul:
            assert figure["mix"]["matmul"] > 0, figure
            if figure["target"] == 90:
                assert figure["wgmma"] > 0, figure


def test_everything_is_as_recorded(figures):
    """Registers, memory and instructions of all builds, with the Triton that is installed."""
    recorded = records.read(records.path_of("triton", version()))
    if recorded is None:
        pytest.skip(f"nothing is recorded for Triton {version()}: {records.UPDATE} does that")
    now = named([figure for build in figures.values() for figure in build])
    found = records.changes(recorded, now)
    assert not found, f"\n{records.table(found)}\nIf that is meant to be so: {records.UPDATE}"


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
