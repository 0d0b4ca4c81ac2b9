"""`trustbench bench`: runs the benchmarks of the checkout that this installation comes from."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import trustbench
from trustbench.errors import InputError, bad


def checkout() -> Path:
    """The checkout's root.

    Raises
    ------
    InputError
        For an installation that is not one, saying how to get the benchmarks.
    """
    root = Path(trustbench.__file__).parents[1]
    if not (root / "benchmarks" / "conftest.py").is_file():
        raise InputError(
            "the benchmarks stand in the repository, not in the installed package: clone it,"
            " run pip install -e '.[bench]' there, then trustbench bench again"
        )
    return root


def run_benchmarks(
    *,
    full: bool = False,
    gpu: bool = False,
    only: str = "",
    out: Path = Path("bench-run"),
    peers_python: str = "",
    compare: Path | None = None,
    readme: bool = False,
) -> int:
    """Run the suite, or `benchmarks.gpu`; the exit status.

    Parameters
    ----------
    full, gpu : bool
        The long shapes, or the GPU's script, instead of the short shapes.
    only : str
        Subjects, by commas.
    out : Path
        Directory of bench.json, bench.md and bench.html.
    peers_python : str
        The python of the peers' environment; "": where `python -m benchmarks.peers` puts it.
    compare : Path or None
        An earlier bench.json: status 1 when a ratio to trustbench moved by more than a quarter.
    readme : bool
        Keep the result in benchmarks/results, and write the README's figures from it.
    """
    root = checkout()
    if gpu:
        if full or only or compare or readme:
            raise bad("gpu", True, "no --full, --only, --compare or --readme with it")
        return subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=root).returncode
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise InputError("the benchmarks need pytest-benchmark: pip install -e '.[bench]'")
    if readme and (only or not full):
        raise bad("readme", True, "--full and no --only with it: the README's figures are of all")
    sys.path.insert(0, str(root))  # `benchmarks` is not installed
    run = importlib.import_module("benchmarks.run").run
    return run(
        scale="full" if full else "quick",
        only=[name.strip() for name in only.split(",") if name.strip()],
        out=out,
        peers_python=peers_python,
        compare=compare,
        readme=readme,
    )
