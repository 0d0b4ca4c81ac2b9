"""Transcoders from a run's start to its evaluation: another point is written than is read."""

from __future__ import annotations

import pytest
import torch

import trustbench as tb
from tests.training.runs import weights
from trustbench.errors import InputError


@pytest.mark.parametrize("target_site", ["mlp_out", "mlp_hidden"])
def test_trains_loads_and_is_evaluated(config, tmp_path, tiny_text, target_site):
    sae = {"d_sae": 64, "k": 8, "skip": True}
    fields = {"site": "mlp_in", "target_site": target_site, "sae": sae, "layers": [0, 2]}
    whole = tb.train(config(out=str(tmp_path / "whole"), **fields), progress=False)
    wirings = {name: sae.wiring for name, sae in whole.saes.items()}
    assert len(wirings) == 2
    for name, wiring in wirings.items():
        assert wiring.name == name == wiring.writes != wiring.reads and ".mlp" in wiring.reads
    wide = {"mlp_out": 16, "mlp_hidden": 32}[target_site]
    assert all((s.cfg.d_in, s.cfg.d_out) == (16, wide) for s in whole.saes.values())
    loaded = tb.SAE.load(tmp_path / "whole" / "final" / next(iter(wirings)))
    assert loaded.wiring == next(iter(wirings.values()))
    table = tb.evaluate(
        tb.EvalConfig(run=str(tmp_path / "whole"), data=str(tiny_text), tokens=500), progress=False
    )
    assert [row["hook_point"] for row in table] == list(wirings)
    assert all(0 < row["fvu"] < 1 for row in table), [row["fvu"] for row in table]
    again = tb.train(config(out=str(tmp_path / "again"), **fields), progress=False)
    mine, other = weights(tmp_path / "whole" / "final"), weights(again.out / "final")
    assert len(mine) > 10 and mine.keys() == other.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, equal_nan=True)


def test_what_needs_a_target(config, tmp_path):
    with pytest.raises(InputError, match=r"sae\.skip=True: expected false, or a target_site"):
        config(sae={"d_sae": 64, "k": 8, "skip": True})
    with pytest.raises(InputError, match=r"target_site='mlp_outt'.*mlp_out"):
        config(target_site="mlp_outt")
    wrong = config(target_site="mlp_out", sae={"d_sae": 64, "k": 8, "d_out": 3})
    with pytest.raises(InputError, match=r"sae\.d_out=3: expected 0 or 16"):
        tb.train(wrong, progress=False)
    cached = config(model="", data="", activations=str(tmp_path), target_site="mlp_out")
    with pytest.raises(NotImplementedError, match="not from captured activations"):
        from trustbench.training import loop

        loop._Run._source(type("Run", (), {"config": cached})())
