"""The suite's options and hooks: shapes by scale, one `suite` a session, what the JSON holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import machine
from benchmarks.record import Record
from benchmarks.report import tables
from benchmarks.shapes import SCALES, label
from benchmarks.suite import Suite

_PEERS = Path(__file__).parents[1] / ".peers" / "bin" / "python"
_SUITE = pytest.StashKey[Suite]()


def default_peers_python() -> str:
    """Where `python -m benchmarks.peers` puts it; without it this environment may have them."""
    return str(_PEERS) if _PEERS.exists() else sys.executable


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("trustbench")
    group.addoption("--scale", choices=list(SCALES), default="quick", help="which shapes")
    group.addoption("--peers-python", default=default_peers_python(), help="python with the peers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`case`: every shape of the module's SUBJECT."""
    if "case" in metafunc.fixturenames:
        scale = SCALES[metafunc.config.getoption("--scale")]
        cases = getattr(scale, metafunc.module.SUBJECT)
        metafunc.parametrize("case", cases, ids=label, scope="session")


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Suite:
    """What the session measures with."""
    config = request.config
    name = config.getoption("--scale")
    made = Suite(SCALES[name], config.getoption("--peers-python"), small=name == "toy")
    config.stash[_SUITE] = made
    return made


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Ours instead of pytest-benchmark's, which has the host's name and every flag of its CPU."""
    machine_info.clear()
    machine_info |= machine() | {"scale": config.getoption("--scale")}
    if made := config.stash.get(_SUITE, None):
        machine_info["ceilings"] = made.ceilings._asdict()


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Those who were absent stand in the record too; the commit stands in the machine."""
    del output_json["commit_info"]
    made = config.stash.get(_SUITE, None)
    output_json["absent"] = made.absent if made else []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Time, share of the floor and ratio to each peer, a table a subject."""
    session = config._benchmarksession  # type: ignore[attr-defined]
    made = config.stash.get(_SUITE, None)
    found = {
        "machine_info": session.get_machine_info(),
        "benchmarks": [b.as_dict(include_data=True) for b in session.benchmarks if not b.has_error],
        "absent": made.absent if made else [],
    }
    terminalreporter.write_line("")
    terminalreporter.write_line(tables(Record(found)))
