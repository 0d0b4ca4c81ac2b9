"""trustbench heads: heads.jsonl and heads.html of a model on a text."""

from __future__ import annotations

import json
import math

import pytest

from tests.report.markup import assert_whole
from trustbench.attention.page import heads_page
from trustbench.attention.scores import HeadScores
from trustbench.cli import main
from trustbench.report import Table


@pytest.fixture
def options(tiny_model_dir, tiny_text, tmp_path):
    return [
        "heads", "--model", str(tiny_model_dir), "--data", str(tiny_text),
        "--out", str(tmp_path / "heads"), "--tokens", "600", "--context_length", "32",
        "--model_rows", "8", "--document_separator", "\n",
    ]  # fmt: skip


def test_it_writes_scores_and_a_page(options, tmp_path, capsys):
    assert main(options) == 0
    assert "heads.html" in capsys.readouterr().out
    table = Table.read(tmp_path / "heads" / "heads.jsonl")
    names = [f"gpt_neox.layers.{i}.attention" for i in range(3)]
    for part in ("repeated", "text"):
        found = table.where(part=part)
        assert [(row["layer"], row["head"]) for row in found] == [
            (n, h) for n in names for h in (0, 1)
        ]
        assert set(HeadScores._fields) <= set(found.columns) and found[0]["tokens"] >= 600
    assert "induction_z_initial" in table.where(part="repeated").columns
    assert "induction_z_initial" not in table.where(part="text").columns
    for row in table.where(part="text"):
        shares = [row[name] for name in ("previous", "sink", "entropy")]
        assert all(v is not None and -1e-6 <= v <= 1 + 1e-6 and math.isfinite(v) for v in shares)
        assert row["kv_head"] == row["head"] and row["within"] is None
    about = json.loads((tmp_path / "heads" / "heads.about.json").read_text())
    assert about["config"]["tokens"] == 600
    page = (tmp_path / "heads" / "heads.html").read_text()
    assert_whole(page)
    # Six maps of random tokens, six of text: these heads have keys of their own, no groups.
    assert page.count("<table") == 12 and "random weights" in page
    assert "Attention of model0" in page and str(tmp_path.parent.parent) not in page


def test_bad_input_is_one_sentence(options, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options[options.index("--out") + 1] = str(tmp_path / "file")
    assert main(options) == 2
    assert "expected a directory" in capsys.readouterr().err


def test_groups_and_linear_layers_have_their_maps():
    scores = dict.fromkeys(HeadScores._fields, 0.5)
    rows = [
        {"part": part, "layer": f"layers.{i}", "head": h, "kv_head": h // 2, **scores}
        for part in ("repeated", "text")
        for i in (0, 2)
        for h in range(4)
    ]
    rows.append({"part": "linear", "layer": "layers.1", "head": 0, "look_back": math.inf})
    found = heads_page(Table({"model": "<m>", "tokens": 1000} | row for row in rows))
    assert_whole(found)
    assert found.count("<table") == 15 and "Linear-attention layers" in found and "1,000" in found
    within = found[found.index("divergence within") :]
    assert within[: within.index("</table>")].count("<td style") == 4  # two layers, two groups
    assert "layers.0, 1: 0.500" in found and "layer 0, head 0: 0.50" in found


def test_layers_of_the_same_number_keep_their_paths():
    rows = [
        {"part": part, "layer": f"{side}.layers.0", "head": 0, "kv_head": 0}
        | dict.fromkeys(HeadScores._fields, 0.5)
        for part in ("repeated", "text")
        for side in ("encoder", "decoder")
    ]
    found = heads_page(Table({"model": "m", "tokens": 1} | row for row in rows))
    assert '<th scope="row">encoder.layers.0</th>' in found
