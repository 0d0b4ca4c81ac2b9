"""The demo's figures and page, from made-up tables."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from tests.report.markup import assert_whole, without_drawings
from trustbench.report import Table, style
from trustbench.report.page import Figure
from trustbench.studies.demo import figures
from trustbench.studies.demo.page import page, training_seconds
from trustbench.studies.demo.passages import Feature, Passage
from trustbench.studies.demo.run import feature_tables

NAMES = ["model.layers.0", "model.layers.1"]


@pytest.fixture
def tables():
    metrics = Table(
        {
            "tokens": t, "hook_point": n, "fvu": 1 / t, "loss": 2 / t, "l0": 32.0,
            "dead_fraction": t / 1e4, "tokens_per_second": 10,
        }
        for t in (100, 200, 300)
        for n in NAMES
    )  # fmt: skip
    evaluation = Table(
        {
            "hook_point": n, "tokens": 1234, "predicted_tokens": 1200, "fvu": 0.1, "l0": 32,
            "cosine": 0.9, "dead_fraction": 0.01, "dense_fraction": 0.02, "ce_reconstructed": 3.1,
            "loss_recovered": recovered, "density_histogram": [5] * 24,
            "density_edges": [-6 + 0.25 * i for i in range(25)],
        }
        for n, recovered in zip(NAMES, (0.95, math.nan), strict=True)
    )  # fmt: skip
    passage = Passage(["<script>alert(1)</script>", " king", "\n"], [0.0, 2.5, 0.5], 1)
    found = {n: [Feature(7, 0.001, 2.5, [passage], ["</code>"])] for n in NAMES}
    summary = {
        "d_sae": 4096, "model_layers": 2, "parameters": 5e6, "heldout_perplexity": 54.4,
        "heldout_bytes_per_token": 2.6,
    }  # fmt: skip
    made = {"metrics": metrics, "eval": evaluation, "summary": Table([summary])}
    return made | feature_tables(found)


def test_the_page_is_whole_and_says_it_all(tables):
    drawings = {name: Figure("<svg></svg>", name) for name in ("training", "densities")}
    found = page(tables, drawings)
    assert_whole(found)
    text = without_drawings(found)
    for part in ("feature 7", "1,234", "0.100", "95.0%", "model.layers.1", "4,096", "5.0 million"):
        assert part in text
    assert "&lt;script&gt;alert(1)" in text and text.count("<td>–</td>") == 1
    assert text.count('<mark style="--a:1.00" title="2.50"> king</mark>') == 2


def test_curves_have_a_line_a_layer_and_no_panel_for_what_never_changes(tables):
    drawing = style.svg(figures.training_curves, tables["metrics"])
    ET.fromstring(drawing.replace("xlink:href", "href"))
    assert "dead features" in drawing and "(L0)" not in drawing
    assert all(colour in drawing for colour in style.layer_colours(2))


def test_densities_have_a_panel_a_layer(tables):
    drawing = style.svg(figures.density_histograms, tables["eval"])
    assert all(name in drawing for name in NAMES) and "100 %" in drawing


def test_training_seconds_survive_a_resumed_run():
    # Two layers' rows a step; the second session was twice as fast.
    steps = [(100, 10), (100, 10), (200, 20), (200, 20)]
    metrics = Table({"tokens": t, "tokens_per_second": speed} for t, speed in steps)
    assert training_seconds(metrics) == pytest.approx(15)
