"""The benchmarks' figure style, until they draw in report.style's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trustbench.report import style


@contextmanager
def pyplot() -> Iterator[Any]:
    """matplotlib.pyplot in the style of figures."""
    with style._style(style._INK, "none"):
        import matplotlib.pyplot as plt

        yield plt
