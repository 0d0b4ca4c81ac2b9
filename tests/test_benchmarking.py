"""`trustbench bench` before it measures: what it needs, and what does not go together."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest

from trustbench import benchmarking
from trustbench.cli import main


def test_outside_a_checkout_it_says_how_to_get_the_benchmarks(tmp_path, monkeypatch, capsys):
    installed = SimpleNamespace(__file__=str(tmp_path / "trustbench" / "__init__.py"))
    monkeypatch.setattr(benchmarking, "trustbench", installed)
    assert main(["bench"]) == 2
    error = capsys.readouterr().err.strip()
    assert "clone it, run pip install -e '.[bench]' there" in error and "\n" not in error


def test_without_pytest_benchmark_it_names_the_extra(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pytest_benchmark" else find(name)
    )
    assert main(["bench"]) == 2
    assert "pip install -e '.[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quick", "--full"], "one of --quick, --full and --gpu"),
        (["--gpu", "--only", "step"], "no --full, --only, --compare or --readme with it"),
        (["--readme"], "--full and no --only with it"),
        (["--full", "--readme", "--only", "step"], "--full and no --only with it"),
        (["--only", "stpe"], "only='stpe': expected subjects out of: step"),
        (["--compare", "nothing.json"], "nothing.json: not a record of trustbench bench"),
    ],
)
def test_what_does_not_go_together_is_one_line(flags, message, capsys):
    assert main(["bench", *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


def test_the_gpu_run_is_the_gpu_script(monkeypatch):
    ran = []

    def call(command, cwd):
        ran.append((command[1:], cwd))
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(benchmarking.subprocess, "run", call)
    assert main(["bench", "--gpu"]) == 1
    assert ran == [(["-m", "benchmarks.gpu"], benchmarking.checkout())]
