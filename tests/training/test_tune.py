"""Tuning: what is timed, what is remembered, and who reads it (in the interpreter)."""

from __future__ import annotations

import json

import pytest
import torch

from trustbench import tuned
from trustbench.cli import main
from trustbench.kernels.triton import _launch, encode_topk
from trustbench.steps import dense as dense_step
from trustbench.training.tune import timings

CPU = torch.device("cpu")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuned._known.cache_clear()
    yield tmp_path / "trustbench" / "tuned.json"
    tuned._known.cache_clear()


def test_the_fastest_of_every_kernel_is_remembered(cache):
    calls = []

    def timer(run):
        run()
        calls.append(run)
        return 10.0 - len(calls) % 3  # the second of three is the fastest

    found = {t.name: t for t in timings(16, 24, 2, 8, CPU, timer)}
    names = ["encode_topk", "collect", "relu_dense", "decode", "reconstruct", "weight_grad"]
    names.append("sparse_adam")
    assert list(found)[:7] == names
    assert len(found["encode_topk"].seconds) == len(encode_topk.CONFIGS)
    known = json.loads(cache.read_text())
    for name in names:
        (key,) = (key for key in known if key.startswith(f"{name};"))
        assert known[key] == found[name].fastest == tuned.fastest(found[name].seconds)
    assert (
        dense_step.measured_crossover(CPU, 16, 24)
        == known[next(key for key in known if key.startswith(dense_step.CROSSOVER))]
    )
    assert dense_step.measured_crossover(CPU, 16, 2**20) == dense_step.DENSE_ABOVE


def test_a_configuration_that_the_card_cannot_hold_is_passed_over(cache):
    from triton.runtime.errors import OutOfResources

    def timer(run):
        if tuned._forced.get("encode_topk", 1) == 0:
            raise OutOfResources(200_000, 100_000, "shared memory")
        return 1.0

    first = next(iter(timings(16, 24, 2, 8, CPU, timer)))
    assert first.seconds[0] == float("inf") and first.fastest == 1


def test_the_default_is_the_first_that_fits(monkeypatch, cache):
    card = torch.device("cuda", 0)
    monkeypatch.setattr(tuned, "_card", lambda index: "a card")
    for limit, place in ((227 * 1024, 0), (100 * 1024, 0), (64 * 1024, 4)):
        monkeypatch.setattr(_launch, "_shared_memory", lambda index, limit=limit: limit)
        chosen = _launch.chosen("encode_topk", encode_topk.CONFIGS, card, N=8, d=16, F=24)
        assert chosen is encode_topk.CONFIGS[place]
    tuned.remember("encode_topk", card, 2, N=8, d=16, F=24)
    assert (
        _launch.chosen("encode_topk", encode_topk.CONFIGS, card, N=9, d=16, F=24)
        is (encode_topk.CONFIGS[2])
    )


def test_there_is_nothing_to_tune_on_a_cpu(capsys):
    assert main(["tune", "--device", "cpu"]) == 2
    assert "a CUDA device: there is nothing to tune on a CPU" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["tune"]) == 2
        assert "torch sees no CUDA device" in capsys.readouterr().err
