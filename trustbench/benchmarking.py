"""bench(): runs the benchmarks of the checkout that this installation comes from."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import trustbench
from trustbench.errors import InputError, bad
from trustbench.fields import Config, NonEmptyStr


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


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Config):
    """What is measured, against whom, and where the report goes.

    Parameters
    ----------
    quick
        3 minutes on 2 cores (the default).
    full
        17 minutes: the README's shapes.
    gpu
        Every kernel and the run, on a GPU.
    only
        Subjects, by commas: step,quality,ops,...
    out
        Directory of bench.json, bench.md and bench.html.
    peers_python
        The python of the peers' environment; empty: where `python -m benchmarks.peers` puts it.
    compare
        An earlier bench.json: status 1 when a ratio to a peer moved by over 25 %.
    readme
        Keep the result in benchmarks/results, and write the README's figures from it.
    """

    quick: bool = False
    full: bool = False
    gpu: bool = False
    only: str = ""
    out: NonEmptyStr = "bench-run"
    peers_python: str = ""
    compare: str = ""
    readme: bool = False

    def check(self) -> None:
        """Flags that do not go together: InputError."""
        if self.quick and (self.full or self.gpu):
            raise bad("quick", True, "one of --quick, --full and --gpu")
        if self.gpu and (self.full or self.only or self.compare or self.readme):
            raise bad("gpu", True, "no --full, --only, --compare or --readme with it")
        if self.readme and (self.only or not self.full):
            raise bad("readme", True, "--full and no --only with it: the README's figures are of all")


class BenchResult(NamedTuple):
    """How the benchmarks ended, and where their report is."""

    status: int  # 0: all is well; 1: a check or a comparison failed
    out: Path


def bench(config: BenchConfig) -> BenchResult:
    """Measure this machine: ops and main jobs against their floors and against every peer present.

    Quality stands beside speed. Runs in a checkout, with the extra `bench`; benchmarks/README.md says
    how to install the peers.

    Parameters
    ----------
    config : BenchConfig

    Returns
    -------
    BenchResult
        Its status is also the exit status of `trustbench bench`.

    Raises
    ------
    InputError
        Outside a checkout, or without pytest-benchmark.
    """
    root = checkout()
    if config.gpu:
        status = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=root).returncode
        return BenchResult(status, root / "benchmarks" / "results")
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise InputError("the benchmarks need pytest-benchmark: pip install -e '.[bench]'")
    sys.path.insert(0, str(root))  # `benchmarks` is not installed
    run = importlib.import_module("benchmarks.run").run
    status = run(
        scale="full" if config.full else "quick",
        only=[name.strip() for name in config.only.split(",") if name.strip()],
        out=Path(config.out),
        peers_python=config.peers_python,
        compare=Path(config.compare) if config.compare else None,
        readme=config.readme,
    )
    return BenchResult(status, Path(config.out))
