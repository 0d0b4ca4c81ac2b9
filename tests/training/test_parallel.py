"""Several processes: the weights of one, whatever is divided, and resumed on any number of them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trustbench as tb
from tests.tiny import write_model
from tests.training import lockstep
from tests.training.lockstep import ROUNDED
from tests.training.runs import metric_lines, weights
from trustbench.activations import CaptureConfig
from trustbench.activations.config import CAPTURED

SAES = {
    "topk": {"d_sae": 64, "k": 4, "auxk": 8, "normalize": "expected_norm"},
    "batchtopk": {"d_sae": 63, "k": 3, "activation": "batchtopk"},
    "relu": {"d_sae": 64, "activation": "relu", "l1_coefficient": 0.02},
    "jumprelu": {"d_sae": 64, "activation": "jumprelu", "l0_coefficient": 0.01},
}


def on_ranks(runs: list[dict], ranks: int = 2) -> None:
    """Train these runs, one after the other, on so many processes."""
    torchrun(ranks, str(Path(__file__).with_name("ranks.py")), json.dumps(runs))


def torchrun(ranks: int, *arguments: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}",
        f"--master-port={port}", *arguments,
    ]  # fmt: skip
    found = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-4000:]


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory) -> Path:
    """Three layers of width 80: no whole number of MXFP8's blocks, and an odd one of them."""
    return write_model(tmp_path_factory.mktemp("model"), tiny_tokenizer, 80)


@pytest.fixture(scope="module")
def trained(model, tiny_text, tmp_path_factory):
    """Every activation on one process, and divided both ways on two: {(kind, how): directory}."""
    root = tmp_path_factory.mktemp("ranks")
    base = {
        "model": str(model), "data": str(tiny_text), "tokens": 5_000, "lr": 3e-3,
        "context_length": 32, "model_rows": 8, "batch_size": 255, "heldout_fraction": 0.2,
        "dead_after_tokens": 500, "log_every": 5, "threads": 1, "clip_norm": 1.0,
    }  # fmt: skip
    found, divided = {}, []
    for kind, sae in SAES.items():
        for how in ("one", "layers", "tokens"):
            out = found[kind, how] = root / f"{kind}-{how}"
            fields = base | {"sae": sae, "out": str(out)}
            if how == "one":
                with lockstep.recorded(root / f"{kind}-steps"):
                    tb.train(tb.TrainConfig.from_dict(fields), progress=False)
            else:
                config = tb.TrainConfig.from_dict(fields | {"parallel": how})
                divided.append(config.to_dict())
        divided[-1]["along"] = str(root / f"{kind}-steps")
    on_ranks(divided)
    return found


def assert_equal(mine: Path, other: Path, **tolerance: float) -> None:
    """The weights of two runs; without tolerances to the bit."""
    found, expected = weights(mine / "final"), weights(other / "final")
    assert found.keys() == expected.keys()
    for name in found:
        bounds = tolerance or {"rtol": 0.0, "atol": 0.0}
        torch.testing.assert_close(found[name], expected[name], equal_nan=True, msg=name, **bounds)


@pytest.mark.parametrize("kind", SAES)
def test_layers_give_the_same_bits(trained, kind):
    one, two = (trained[kind, how] for how in ("one", "layers"))
    assert_equal(two, one)
    assert metric_lines(one) == metric_lines(two)


@pytest.mark.parametrize("kind", SAES)
def test_tokens_give_the_same_weights(trained, kind):
    one, two = (trained[kind, how] for how in ("one", "tokens"))
    assert_equal(two, one, **ROUNDED)
    for mine, other in zip(metric_lines(one), metric_lines(two), strict=True):
        assert mine.pop("hook_point") == other.pop("hook_point")
        assert mine == pytest.approx(other, rel=1e-3)


def test_resumes_on_another_number_of_processes(config, model, tmp_path):
    """2 -> 1 -> 2 processes, by layers, and on by tokens; in MXFP8, with a last batch of one."""
    shared = {"model": str(model), "buffer_dtype": "fp8", "tokens": 6_145}
    steps = tmp_path / "steps"
    with lockstep.recorded(steps):
        tb.train(config(out=str(tmp_path / "whole"), **shared), progress=False)
    run = config(out=str(tmp_path / "run"), **shared).to_dict()
    by_tokens = run | {"out": str(tmp_path / "tokens"), "parallel": "tokens"}
    on_ranks([run | {"stop_at": 1_500, "stop_rank": 1}])
    on_ranks([run | {"stop_at": 3_000}], ranks=1)
    state = json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())
    assert 3_000 <= state["progress"]["tokens"] < 6_145
    shutil.copytree(tmp_path / "run", tmp_path / "tokens")
    on_ranks([run, by_tokens | {"stop_at": 4_500, "along": str(steps)}])
    with lockstep.along(steps):
        tb.train(tb.TrainConfig.from_dict(by_tokens), progress=False)
    assert_equal(tmp_path / "run", tmp_path / "whole")
    assert_equal(tmp_path / "tokens", tmp_path / "whole", **ROUNDED)
    assert metric_lines(tmp_path / "run") == metric_lines(tmp_path / "whole")


def test_a_cache_divided_both_ways(config, model, tmp_path):
    """Every process reads some pieces of it; one that cannot be read stops them all, and is named."""
    cache = tmp_path / "cache"
    settings = {name: getattr(config(model=str(model)), name) for name in CAPTURED}
    captured = CaptureConfig(**settings, out=str(cache), tokens=3_000, shard_tokens=700)
    tb.capture(captured, progress=False)
    fields = config(model="", data="", activations=str(cache)).to_dict()
    fields |= {"tokens": 4_000}
    one, layers, tokens, broken = (
        fields | {"out": str(tmp_path / name), "parallel": how}
        for name, how in (("one", "layers"), ("l", "layers"), ("t", "tokens"), ("b", "layers"))
    )
    with lockstep.recorded(tmp_path / "steps"):
        tb.train(tb.TrainConfig.from_dict(one), progress=False)
    on_ranks([layers, tokens | {"along": str(tmp_path / "steps")}])
    assert_equal(tmp_path / "l", tmp_path / "one")
    assert_equal(tmp_path / "t", tmp_path / "one", **ROUNDED)
    shard = sorted(cache.glob("*.safetensors"))[1]
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    on_ranks([broken | {"error": shard.name}])


def test_what_goes_wrong_is_told_by_all(config, tmp_path):
    run = config(out=str(tmp_path / "run")).to_dict()
    (tmp_path / "taken").write_text("")
    on_ranks([
        run | {"layers": [0], "error": "at most one for each of the 1 hook points"},
        run | {"parallel": "tokens", "error": "tokens, on 2 processes': expected at most 1"},
        run | {"out": str(tmp_path / "taken" / "run"), "error": "expected a directory to write in"},
        run | {"buffer_tokens": 4096, "spill_host_gb": 0.01, "error": "tiers belong to one process"},
        run | {"lr": 1e38, "error": "the loss is"},
    ])  # fmt: skip


def test_a_team_speaks_and_draws_the_same_batchtopk(tmp_path):
    torchrun(3, str(Path(__file__).with_name("rank_checks.py")), str(tmp_path))


def test_the_command_line(config, tmp_path):
    """The documented command: rank 0 alone writes and reports."""
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config(out=str(tmp_path / "run"), tokens=600).to_dict()))
    torchrun(2, "-m", "trustbench", "train", "--config", str(path))
    assert len(weights(tmp_path / "run" / "final")) == 3 * 6
