"""The command line: every field by flag and by file, errors in one line."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest

from trustbench.cli import main
from trustbench.report import Table
from trustbench.sae import SAEConfig
from trustbench.training import TrainConfig


def test_train_then_eval(tiny_model_dir, tiny_text, tmp_path, capsys):
    run = tmp_path / "run"
    config = tmp_path / "c.yaml"
    config.write_text(f"model: {tiny_model_dir}\ncontext_length: 32\nsae:\n  d_sae: 64\n  k: 4\n")
    flags = ["--config", str(config), "--data", str(tiny_text), "--out", str(run)]
    flags += ["--tokens", "6000", "--sae.k", "3", "--layers", "[0, blocks.2.hook_resid_post]"]
    flags += ["--heldout_fraction", "0.5", "--batch_size", "256", "--snapshots", "[2000]"]
    assert main(["train", *flags]) == 0
    saved = json.loads((run / "config.json").read_text())
    assert saved["sae"]["k"] == 3 and saved["context_length"] == 32
    assert main(["eval", str(run), "--tokens", "1000"]) == 0
    layers = ["gpt_neox.layers.0", "gpt_neox.layers.2"]
    assert Table.read(run / "eval.jsonl")["hook_point"] == layers
    assert json.loads((run / "eval.about.json").read_text())["config"]["tokens"] == 1000
    assert main(["eval", str(run), "--snapshot", "2000", "--data", str(tiny_text)]) == 0
    assert main(["eval", str(run), "--snapshot", "7"]) == 2
    assert "no SAEs there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--modle", "x"], "did you mean 'model'"),
        (
            ["train", "--model=m", "--out=o", "--tokens=9", "--sae.d_sae=64"],
            "data='': expected a non-empty string (or activations)",
        ),
        (["train", "--model", "m"], "train.out, train.tokens"),
        (["train", "--model", "m", "--data", "d", "--out", "o", "--tokens", "x"], "tokens"),
        (
            [
                "train",
                "--model",
                "m",
                "--data",
                "d",
                "--out",
                "o",
                "--tokens",
                "9",
                "--sae.d_sae",
                "4",
            ],
            "k=32: expected an integer in [1, d_sae=4]",
        ),
        (["fly"], "fly"),
    ],
)
def test_errors_are_one_line_and_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


def test_config_typo_names_the_nearest_field(tmp_path, capsys):
    (tmp_path / "c.json").write_text('{"modle": "x"}')
    assert main(["train", "--config", str(tmp_path / "c.json")]) == 2
    assert "did you mean 'model'" in capsys.readouterr().err


def test_help_has_every_field_explained():
    run = [sys.executable, "-m", "trustbench", "train", "--help"]
    text = " ".join(subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())
    for field in dataclasses.fields(TrainConfig):
        if field.name != "sae":
            assert f"--{field.name}" in text
    for field in dataclasses.fields(SAEConfig):
        assert f"--sae.{field.name}" in text
    assert "Tokens to train every SAE on" in text and "straight-through" in text


def test_info_tells_what_runs(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for word in (
        "torch",
        "trustbench._C",
        "built; runs",
        "trustbench._cuda",
        "ops on cpu",
    ):
        assert word in text
    lines = {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}
    cuda = "triton" if importlib.util.find_spec("triton") else "reference"
    for op in ("encode_topk", "encode_relu", "reconstruct", "sparse_adam", "attention_capture"):
        assert lines[op] == ["cpu:", "cpp,", "cuda:", cuda]


def test_info_says_which_ops_run_their_reference(monkeypatch):
    from trustbench import installation

    monkeypatch.setattr(installation, "_module", lambda name: None)
    found = installation.info(progress=False)
    assert found["decode"] == "cpu: reference, cuda: reference"
    assert "NOT BUILT" in found["trustbench._C"]


def test_what_is_not_implemented_is_said_in_a_line(tmp_path, capsys):
    flags = ["--out", str(tmp_path / "run"), "--tokens", "100", "--sae.d_sae", "64", "--quiet"]
    cached = ["--activations", str(tmp_path), "--target_site", "mlp_out"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trustbench.training.config.TrainConfig.completed", lambda config: config)
        assert main(["train", *cached, *flags]) == 2
    assert capsys.readouterr().err.startswith("trustbench train: target_site: transcoders train from")
