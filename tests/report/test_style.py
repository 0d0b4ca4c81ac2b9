"""Figures: the same bytes every time, readable on light and on dark pages."""

from __future__ import annotations

import struct
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from trustbench.errors import InputError
from trustbench.report import Table, style

TABLE = Table([{"x": x, "y": x * x} for x in range(5)])
LIGHT, DARK = ("#ffffff", "#fbfbfa"), ("#161b22", "#0d1117")


def curve(table):
    figure, axes = style.subplots(1, 2, (6, 2))
    axes[0, 0].plot(table["x"], table["y"], color=style.OURS, label="squares")
    axes[0, 0].set(title="A <title>", yscale="log")
    style.plain_numbers(axes[0, 0].yaxis)
    style.percent(axes[0, 1].yaxis)
    style.legend_below(figure, axes[0, 0])
    return figure


def test_the_same_table_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        style.save(tmp_path / name, curve, TABLE)
    for kind in ("svg", "light.png", "dark.png"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 6


def test_a_drawing_in_a_page_takes_the_pages_ink_and_font():
    drawing = style.svg(curve, TABLE)
    ET.fromstring(drawing.replace("xlink:href", "href"))
    assert drawing.startswith("<svg") and "currentColor" in drawing
    assert (
        "font-family: inherit" in drawing
        and "DejaVu" not in drawing
        and "<metadata" not in drawing
        and "A &lt;title&gt;" in drawing
    )
    assert style.OURS in drawing and '<g id="' not in drawing


def test_a_drawing_in_a_file_stands_alone(tmp_path):
    style.save(tmp_path / "x", curve, TABLE)
    text = (tmp_path / "x.svg").read_text()
    assert text.startswith("<?xml") and "currentColor" not in text and "Matplotlib" not in text


def test_pngs_have_the_pages_of_both_themes():
    from matplotlib.image import imread

    pixels = {}
    for theme in ("light", "dark"):
        data = style.png(curve, TABLE, theme=theme)
        assert struct.unpack(">II", data[16:24]) == (960, 320)
        pixels[theme] = imread(__import__("io").BytesIO(data))[2, 2, :3].mean()
    assert pixels["light"] > 0.95 and pixels["dark"] < 0.15


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("page", [*LIGHT, *DARK])
def test_every_colour_shows_on_every_page(page):
    """WCAG 2.2, 1.4.11: graphical objects have a contrast of at least 3."""
    colours = [style.OURS, style.OTHERS, style.LIMIT, style._INK]
    for colour in [*colours, *style.layer_colours(48), *style.category_colours(7)]:
        low, high = sorted((luminance(colour), luminance(page)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_colours_are_as_many_as_asked_for():
    assert style.layer_colours(0) == [] and len(style.layer_colours(1)) == 1
    assert len(set(style.layer_colours(40))) == 40 and len(set(style.category_colours(7))) == 7


def test_drawing_leaves_the_users_matplotlib_alone():
    code = (
        "import matplotlib; before = matplotlib.rcParams['axes.grid'];"
        "from trustbench.report import style, Table;"
        "style.svg(lambda t: style.subplots()[0], Table());"
        "import sys; assert matplotlib.rcParams['axes.grid'] == before;"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'trustbench\[plots\]'"):
        style.require()
