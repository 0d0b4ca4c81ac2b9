"""bench(): runs the benchmarks of the checkout that this installation comes from."""

from __future__ import annotations

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
    if not (root / "benchmarks" / "__main__.py").is_file():
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
        Ops, steps and whole runs, on a GPU.
    only
        Subjects, by commas: step,quality,ops,...
    out
        Directory of bench.jsonl, bench.about.json, bench.md and bench.html.
    peers_python
        The python of the peers' environment; empty: where `python -m benchmarks.peers` puts it.
    compare
        An earlier bench.jsonl: status 1 when a ratio to a peer moved by over 25 %.
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
        Outside a checkout.
    """
    flags = [name for name in ("quick", "full", "gpu", "readme") if getattr(config, name)]
    values: dict[str, object] = {"only": config.only, "out": Path(config.out).absolute()}
    if config.peers_python:
        values["peers-python"] = Path(config.peers_python).absolute()
    if config.compare:
        values["compare"] = Path(config.compare).absolute()
    words = [f"--{name}" for name in flags] + [f"--{name}={v}" for name, v in values.items()]
    command = [sys.executable, "-m", "benchmarks", *words]
    return BenchResult(subprocess.run(command, cwd=checkout()).returncode, Path(config.out))
