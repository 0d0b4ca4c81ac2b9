"""What stands beside a table, and what a page calls a model."""

from __future__ import annotations

import json

import pytest
import torch

from trustbench.report import about, model_name, provenance
from trustbench.sae import SAEConfig


def test_about_says_where_results_came_from():
    found = about(SAEConfig(d_sae=64), device="cpu", seed=3, seconds=1.23456)
    assert json.loads(json.dumps(found)) == found
    assert found["config"]["d_sae"] == 64 and found["seed"] == 3 and found["seconds"] == 1.235
    assert found["versions"]["torch"] == torch.__version__ and found["device"]
    assert about({"k": 1})["config"] == {"k": 1} and about()["config"] is None


def test_the_commit_is_that_of_the_checkout_alone(monkeypatch, tmp_path):
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(provenance, "_ROOT", tmp_path / "site-packages")
    assert provenance.commit() is None
    (tmp_path / "site-packages" / ".git").mkdir()  # no repository either
    assert provenance.commit() is None


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("gpt2", "gpt2"),
        ("/home/me/models/small", "small"),
        ("/home/me/models/small/", "small"),
        ("../models/small", "small"),
        ("models/of/mine", "mine"),
        ("/c/hub/models--EleutherAI--pythia-70m/snapshots/0a1b", "EleutherAI/pythia-70m"),
        ("/c/hub/models--gpt2/snapshots/0a1b/", "gpt2"),
    ],
)
def test_a_model_has_a_name_and_no_path(model, name):
    assert model_name(model) == name


def test_a_directory_here_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_name("runs/mine") == "mine" and model_name("runs") == "runs"
