"""The report is one valid, self-contained file."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from trustbench.demo.passages import Feature, Passage
from trustbench.demo.report import write_report
from trustbench.evals import EvalReport, LayerEval
from trustbench.evals.evaluate import DENSITY_EDGES

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
        {"tokens": t, "hook_point": n, "fvu": 1 / t, "mse": 2 / t, "dead_fraction": 0.0}
        for t in (100, 200, 300)
        for n in names
    ]
    layer = LayerEval(0.1, 32, 0.9, 0.01, 0.02, 3.0, 3.1, 5, 4, 0.95, 0.9, [5] * 24)
    report = EvalReport(1234, 1200, dict.fromkeys(names, layer), list(DENSITY_EDGES))
    passage = Passage(["<script>alert(1)</script>", " king", "\n"], [0.0, 2.5, 0.5])
    features = {n: [Feature(7, 0.001, 2.5, [passage])] for n in names}
    write_report(
        tmp_path / "report.html",
        title="A <title>",
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
    assert '<span style="--a:1.00" title="2.50"> king</span>' in page
    assert '<span style="--a:0.20" title="0.50"><i>↵</i></span>' in page
