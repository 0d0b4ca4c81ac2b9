"""`trustbench bench` before it measures: what it runs, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.__main__ import main as measure
from trustbench import benchmarking
from trustbench.cli import main


def test_outside_a_checkout_it_says_how_to_get_the_benchmarks(tmp_path, monkeypatch, capsys):
    installed = SimpleNamespace(__file__=str(tmp_path / "trustbench" / "__init__.py"))
    monkeypatch.setattr(benchmarking, "trustbench", installed)
    assert main(["bench"]) == 2
    error = capsys.readouterr().err.strip()
    assert "clone it, run pip install -e '.[bench]' there" in error and "\n" not in error


@pytest.mark.parametrize("run", [measure, lambda flags: main(["bench", *flags])])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quick", "--full"], "one of --quick, --full and --gpu"),
        (["--gpu", "--only", "step"], "no --full, --only, --compare or --readme with it"),
        (["--readme"], "--full and no --only with it"),
        (["--full", "--readme", "--only", "step"], "--full and no --only with it"),
    ],
)
def test_what_does_not_go_together_is_one_line(run, flags, message, capsys):
    assert run(flags) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "ops,stpe"], "only='ops,stpe': expected subjects out of: step"),
        (["--compare", "nothing.jsonl"], "nothing.jsonl: not a record of trustbench bench"),
    ],
)
def test_what_is_not_there_is_told_before_anything_is_measured(flags, message, capsys):
    assert measure(flags) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpu"], ["--gpu", "--only="]),
        (["--full", "--only", "ops"], ["--full", "--only=ops"]),
        (["--compare", "a"], ["--only=", f"--compare={Path('a').absolute()}"]),
    ],
)
def test_it_runs_the_suite_in_the_checkout(flags, words, monkeypatch):
    ran = []

    def call(command, cwd):
        ran.append((command[1:], cwd))
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(benchmarking.subprocess, "run", call)
    assert main(["bench", *flags]) == 1
    ((command, cwd),) = ran
    out = f"--out={Path('bench-run').absolute()}"
    assert command[:2] == ["-m", "benchmarks"] and set(command[2:]) == {*words, out}
    assert cwd == benchmarking.checkout()
