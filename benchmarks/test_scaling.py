"""Cost against every size, where memory ends, and scaling over processes.

    pytest benchmarks/test_scaling.py --scale full

The rows are in the extra_info of the benchmark; its own time is that of the whole sweep.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import scaling, scaling_ranks


@pytest.fixture
def extent(request: pytest.FixtureRequest) -> str:
    """Sweeps are full or quick."""
    return "full" if request.config.getoption("--scale") == "full" else "quick"


@pytest.mark.parametrize("variable", scaling.BASE._fields)
def test_sweep(benchmark: Any, variable: str, extent: str) -> None:
    rows = benchmark.pedantic(scaling.sweep, (variable, extent), rounds=1)
    benchmark.extra_info["scaling"] = rows


def test_processes(benchmark: Any, extent: str) -> None:
    rows = benchmark.pedantic(scaling_ranks.sweep, (extent,), rounds=1)
    benchmark.extra_info["scaling"] = rows
