"""A small run to train."""

from __future__ import annotations

import pytest

import trustbench as tb


@pytest.fixture
def config(tiny_model_dir, tiny_text, tmp_path):
    def make(**fields):
        base = {
            "model": str(tiny_model_dir), "data": str(tiny_text), "out": str(tmp_path / "run"),
            "tokens": 12_000, "sae": {"d_sae": 64, "k": 4, "normalize": "expected_norm"},
            "context_length": 32, "model_rows": 8, "batch_size": 256, "lr": 3e-3,
            "heldout_fraction": 0.2, "dead_after_tokens": 2000, "log_every": 5, "threads": 1,
        }  # fmt: skip
        return tb.TrainConfig.from_dict(base | fields)

    return make
