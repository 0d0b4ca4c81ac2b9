"""The report is one valid, self-contained file."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest

from trustbench.evals import EvalReport, LayerEval
from trustbench.evals.sae import DENSITY_EDGES
from trustbench.studies.demo.passages import Feature, Passage
from trustbench.studies.demo.report import write_report

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Balanced(HTMLParser):
    """Every tag that opens closes, in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


@pytest.fixture
def page(tmp_path):
    names = ["model.layers.0", "model.layers.1"]
    metrics = [
        {
            "tokens": t,
            "hook_point": n,
            "fvu": 1 / t,
            "loss": 2 / t,
            "l0": 32.0,
            "dead_fraction": t / 1e4,
        }
        for t in (100, 200, 300)
        for n in names
    ]
    first = LayerEval(0.1, 32, 0.9, 0.01, 0.02, 3.0, 3.1, 5, 4, 0.95, 0.9, [5] * 24)
    # Where ablation costs nothing, no loss can be recovered.
    second = LayerEval(0.1, 32, 0.9, 0.01, 0.02, 3.0, 3.1, 3, 3, math.nan, math.nan, [5] * 24)
    layers = dict(zip(names, (first, second), strict=True))
    report = EvalReport(1234, 1200, layers, list(DENSITY_EDGES))
    passage = Passage(["<script>alert(1)</script>", " king", "\n"], [0.0, 2.5, 0.5], 1)
    features = {n: [Feature(7, 0.001, 2.5, [passage], ["</code>", "\x04"])] for n in names}
    write_report(
        tmp_path / "report.html",
        title="A <title>",
        about="A <model>.",
        facts={"tokens": "1,000"},
        metrics=metrics,
        report=report,
        features=features,
    )
    return (tmp_path / "report.html").read_text()


def test_is_balanced_and_complete(page):
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "$" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.S)
    for text in ("feature 7", "1,234", "0.100", "95.0%", "model.layers.1"):
        assert text in page
    assert page.count("<svg") == 2


def test_loads_nothing_from_anywhere(page):
    loads = re.findall(r'(?:src|href)\s*=\s*"([^"#][^"]*)"|url\(\s*["\']?([^#)"\']+)', page)
    assert loads == []
    assert "@import" not in page


def test_text_is_escaped_and_shaded(page):
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert "A &lt;title&gt;" in page and "A &lt;model&gt;." in page
    assert "<code>&lt;/code&gt;</code><code>\\x04</code>" in page
    peak = (
        '<mark style="--a:1.00" title="2.50"> king</mark>'
        '<mark style="--a:0.20" title="0.50"><i>↵</i></mark>'
    )
    assert f"<span><span>{peak}</span></span></p>" in page


def test_a_figure_that_is_not_a_number_is_a_dash(page):
    assert page.count("<td>–</td>") == 1
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.S)


def test_a_figure_that_never_changes_has_no_curve(page):
    assert "dead features" in page and "(L0)" not in page
