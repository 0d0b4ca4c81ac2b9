"""trustbench heads: heads.json and heads.html of a model on a text."""

from __future__ import annotations

import json
import math

import pytest

from tests.report.markup import assert_whole
from trustbench.attention.scores import HeadScores
from trustbench.cli import main


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
    found = json.loads((tmp_path / "heads" / "heads.json").read_text())
    names = [f"gpt_neox.layers.{i}.attention" for i in range(3)]
    assert list(found["text"]) == list(found["repeated"]["raw"]) == names and found["tokens"] >= 600
    for part in (found["text"], *found["repeated"].values()):
        for scores in part.values():
            assert set(scores) == set(HeadScores._fields)
    for scores in found["text"].values():
        shares = [v for name in ("previous", "sink", "entropy") for v in scores[name]]
        assert all(v is not None and -1e-6 <= v <= 1 + 1e-6 and math.isfinite(v) for v in shares)
    page = (tmp_path / "heads" / "heads.html").read_text()
    assert_whole(page)
    # Six maps of random tokens, six of text: these heads have keys of their own, no groups.
    assert page.count("<table") == 12 and "random weights" in page


def test_bad_input_is_one_sentence(options, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options[options.index("--out") + 1] = str(tmp_path / "file")
    assert main(options) == 2
    assert "expected a directory" in capsys.readouterr().err
