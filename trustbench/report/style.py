"""The one style of figures: drawn from tables, for light and dark pages, as SVG and PNG.

A drawing function takes tables and returns a matplotlib Figure made by `subplots`; `svg`, `png` and
`save` call it in the style of where the figure goes. The same tables give the same bytes.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustbench import files
from trustbench.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[..., "Figure"]  # tables -> figure

# Lines and bars; each has a contrast of at least 3 with the light and with the dark page.
OURS, OTHERS, LIMIT = "#1c8f88", "#7f868e", "#d94f5c"
# From the first layer to the last: from blue through red to gold, for all kinds of colour vision.
_LAYERS = ("#3a7bd5", "#7d6bd8", "#b159b8", "#d3527f", "#d5653b", "#ad7f10")
_CATEGORIES = ("#3a7bd5", "#d5653b", "#1c8f88", "#b159b8", "#ad7f10", "#d3527f", "#7f868e")
_INK = "#7d8590"  # reads on any page; an SVG within a page takes the page's own ink instead
_PAGES = {"light": ("#ffffff", "#1f2328"), "dark": ("#161b22", "#e6edf3")}  # page, ink


def require() -> None:
    """InputError when matplotlib is missing; a job that ends with figures asks before it starts."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("figures need matplotlib: pip install 'trustbench[plots]'") from error


def subplots(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (11, 3), **options: Any
) -> tuple[Figure, Any]:
    """A figure of `size` inches, and its axes [rows, columns] as an array.

    `options` are those of Figure.subplots: sharey, gridspec_kw, ...
    """
    require()
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def layer_colours(count: int) -> list[str]:
    """Colours for `count` layers in order: blue for the first, gold for the last."""
    return [_between(_LAYERS, i / max(count - 1, 1)) for i in range(count)]


def category_colours(count: int) -> list[str]:
    """Colours for `count` things without an order; they repeat after seven."""
    return [_CATEGORIES[i % len(_CATEGORIES)] for i in range(count)]


def legend_below(figure: Figure, axis: Any, columns: int = 6) -> None:
    """One legend below all panels, from what is labelled in `axis`."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), fontsize=8
    )


def plain_numbers(axis: Any, steps: Sequence[int] = (1, 2, 5)) -> None:
    """Label a logarithmic axis (axis.xaxis or axis.yaxis) 50, 100, 200 instead of by powers."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def percent(axis: Any) -> None:
    """Label an axis of shares 0 % to 100 %."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1))


def svg(draw: Draw, *tables: Any) -> str:
    """The figure as an <svg> element for a page: in the page's font and ink, without a background."""
    text = _svg(draw, tables)
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # of two figures they would be the same
    text = re.sub(r'font-family:[^;"]*|font: ([\d.]+px) [^;"]*', _page_font, text)
    return text.replace(_INK, "currentColor")


def png(draw: Draw, *tables: Any, theme: str = "light") -> bytes:
    """The figure as a PNG for a "light" or a "dark" page, with the page's background."""
    page, ink = _PAGES[theme]
    buffer = io.BytesIO()
    with _style(ink, page):
        figure = draw(*tables)
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def save(stem: str | os.PathLike[str], draw: Draw, *tables: Any) -> None:
    """Write <stem>.svg, which reads on any page, <stem>.light.png and <stem>.dark.png."""
    path = Path(stem)
    files.atomic_write_text(path.with_name(f"{path.name}.svg"), _svg(draw, tables))
    for theme in _PAGES:
        data = png(draw, *tables, theme=theme)
        files.atomic_write_bytes(path.with_name(f"{path.name}.{theme}.png"), data)


def _svg(draw: Draw, tables: Sequence[Any]) -> str:
    buffer = io.StringIO()
    with _style(_INK, "none"):
        figure = draw(*tables)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _page_font(match: re.Match[str]) -> str:
    return f"font-size: {match[1]}" if match[1] else "font-family: inherit"


@contextmanager
def _style(ink: str, page: str) -> Iterator[None]:
    require()
    from matplotlib import rc_context

    style: Any = {  # matplotlib types the keys as literals
        "svg.fonttype": "none", "svg.hashsalt": "trustbench",
        "font.family": "sans-serif", "font.size": 9, "lines.linewidth": 1.6,
        "text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink,
        "figure.facecolor": page, "savefig.facecolor": page, "axes.facecolor": "none",
        "axes.edgecolor": "#8c959f55", "grid.color": "#8c959f33", "legend.frameon": False,
        "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
        "axes.grid": True, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "axes.titlesize": 10, "axes.titlelocation": "left",
    }  # fmt: skip
    with rc_context(style):
        yield


def _between(colours: Sequence[str], place: float) -> str:
    """The colour at `place` in [0, 1] along `colours`, linear between neighbours."""
    at = place * (len(colours) - 1)
    left = min(int(at), len(colours) - 2)
    parts = (
        round(int(a, 16) + (at - left) * (int(b, 16) - int(a, 16)))
        for a, b in ((colours[left][i : i + 2], colours[left + 1][i : i + 2]) for i in (1, 3, 5))
    )
    return "#" + "".join(f"{part:02x}" for part in parts)
