"""Schedules at their corners."""

from __future__ import annotations

import pytest

from trustbench.training import TrainConfig
from trustbench.training.schedule import lr_factor, sparsity_factor


def config(**fields) -> TrainConfig:
    base = {"model": "m", "data": "d", "out": "o", "tokens": 1000, "sae": {"d_sae": 64, "k": 4}}
    return TrainConfig.from_dict(base | fields)


def test_warm_up_plateau_and_decay():
    c = config(warmup_fraction=0.1, decay="linear", decay_fraction=0.5)
    assert [lr_factor(c, t) for t in (0, 50, 100, 500, 750, 1000)] == [0, 0.5, 1, 1, 0.5, 0]
    cosine = config(warmup_fraction=0.0, decay="cosine", decay_fraction=1.0)
    assert lr_factor(cosine, 0) == 1
    assert lr_factor(cosine, 500) == pytest.approx(0.5)
    assert lr_factor(cosine, 1000) == pytest.approx(0)
    assert lr_factor(config(warmup_fraction=0.0, decay="constant"), 1000) == 1


def test_sparsity_rises():
    assert sparsity_factor(config(l1_warmup_fraction=0.5), 250) == 0.5
    assert sparsity_factor(config(l1_warmup_fraction=0.0), 0) == 1
