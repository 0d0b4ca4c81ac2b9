"""TrainConfig: validation, files."""

from __future__ import annotations

import json

import pytest

from trustbench.errors import InputError
from trustbench.training import TrainConfig

FIELDS = {"model": "m", "data": "d", "out": "o", "tokens": 100, "sae": {"d_sae": 64, "k": 4}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens=0: expected an integer >= 1"),
        ({"model": ""}, "model='': expected a non-empty string"),
        ({"lr": -1.0}, r"lr=-1\.0"),
        ({"beta2": 1.0}, r"beta2=1\.0: expected a number in \[0, 1\)"),
        ({"decay": "exp"}, "decay='exp': expected one of constant, linear, cosine"),
        ({"heldout_fraction": 0.6}, r"heldout_fraction=0\.6"),
        (
            {"snapshots": [50, 101]},
            r"snapshots=\[50, 101\]: expected token counts in \[1, tokens=100\]",
        ),
        ({"buffer_tokens": 100}, "buffer_tokens=100: expected 0 or at least batch_size"),
        ({"sinks": ["comet"]}, "sinks='comet'"),
        ({"batch_sise": 4}, "no field 'batch_sise'; did you mean 'batch_size'"),
        ({"lr": "fast"}, "lr='fast': expected a number"),
        ({"lr": True}, "lr=True: expected a number"),
        ({"eps": 0.0}, r"eps=0\.0: expected a finite number > 0"),
        ({"pack_documents": "no"}, "pack_documents='no': expected true or false"),
        ({"data_field": 3}, "data_field=3: expected a string"),
        ({"sinks": "wandb"}, "sinks='wandb': expected a list"),
        ({"snapshots": 50}, "snapshots=50: expected a list"),
        ({"layers": 3}, "layers=3: expected 'all', or a list"),
        ({"layers": [0, 1.5]}, r"layers=\[0, 1\.5\]: expected 'all', or a list"),
        ({"sae": None}, "sae=None: expected an SAEConfig"),
        ({"sae": {"d_sae": 4, "k": 5}}, r"k=5: expected an integer in \[1, d_sae=4\]"),
        ({"sae": {"dsae": 4}}, "SAEConfig has no field 'dsae'; did you mean 'd_sae'"),
    ],
)
def test_bad_fields_are_named(change, message):
    with pytest.raises(InputError, match=message):
        TrainConfig.from_dict(FIELDS | change)


def test_missing_fields_are_named():
    with pytest.raises(InputError, match="missing model, data, out, tokens, sae"):
        TrainConfig.from_dict({})


def test_files_and_round_trip(tmp_path):
    config = TrainConfig.from_dict(FIELDS)
    assert TrainConfig.from_dict(config.to_dict()) == config
    (tmp_path / "c.json").write_text(json.dumps(FIELDS))
    (tmp_path / "c.yaml").write_text(
        "model: m\ndata: d\nout: o\ntokens: 100\nsae:\n  d_sae: 64\n  k: 4\n"
    )
    assert TrainConfig.from_file(tmp_path / "c.json") == config
    assert TrainConfig.from_file(tmp_path / "c.yaml") == config
    for spelled in ("2e-4", "2.0e-4", "+2E-4", "0.0002"):  # PyYAML reads the first as a string
        (tmp_path / "lr.yaml").write_text((tmp_path / "c.yaml").read_text() + f"lr: {spelled}\n")
        assert TrainConfig.from_file(tmp_path / "lr.yaml").lr == 2e-4
    (tmp_path / "bad.yaml").write_text("model: [")
    for name in ("bad.yaml", "absent.json"):
        with pytest.raises(InputError, match="not readable"):
            TrainConfig.from_file(tmp_path / name)


def test_learning_rate_default_scales_with_the_dictionary():
    assert TrainConfig.from_dict(FIELDS).learning_rate == pytest.approx(2e-4 * 16)
    assert TrainConfig.from_dict(FIELDS | {"lr": 0.5}).learning_rate == 0.5
