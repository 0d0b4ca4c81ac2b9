"""Whole runs: results, resume after SIGKILL, clean stops, errors that lose nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import trustbench as tb
from tests.faults import files_end_at, flip_a_bit
from tests.training.runs import metric_lines, start, wait_for_tokens, weights
from trustbench.errors import CheckpointError, DataError, InputError, NonFiniteError
from trustbench.models import ActivationCapture
from trustbench.sae import load_saes
from trustbench.training import loop


@pytest.mark.parametrize("fields", [{}, {"matmul_dtype": "fp32"}], ids=["bf16", "fp32"])
def test_a_run_on_triton_kernels_learns_as_much_and_resumes(config, tmp_path, fields):
    """In the interpreter: the loop, its trainers and their checkpoints, as on a GPU."""
    small = {"tokens": 320, "batch_size": 32, "log_every": 3, "checkpoint_tokens": 160} | fields
    small |= {"layers": [1], "dead_after_tokens": 100}
    small |= {"sae": {"d_sae": 24, "k": 4, "normalize": "expected_norm"}}
    tb.train(config(**small | {"out": str(tmp_path / "cpu"), "matmul_dtype": "fp32"}), progress=False)
    stopped = config(**small)
    with tb.ops.use("triton"):
        tb.train(stopped, progress=False)
    kept = weights(Path(stopped.out) / "final")
    lines = [
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (tmp_path / "cpu", Path(stopped.out))
    ]
    for cpu, triton in zip(*lines, strict=True):
        assert triton["fvu"] == pytest.approx(cpu["fvu"], rel=0.01 if not fields else 1e-3)
    # From the checkpoint after 160 tokens on, once more.
    shutil.rmtree(Path(stopped.out) / "final")
    with tb.ops.use("triton"):
        assert tb.train(stopped, progress=False).finished
    again = weights(Path(stopped.out) / "final")
    # The interpreter cuts bf16 copies off where torch, after a resume, rounds them.
    slack = {"rtol": 0, "atol": 0} if fields else {"rtol": 0.05, "atol": 0.02}
    torch.testing.assert_close(again, kept, **slack, equal_nan=True)


def test_a_run_leaves_everything_it_promises(config, tmp_path):
    result = tb.train(config(snapshots=[3000, 9000]), progress=False)
    run = tmp_path / "run"
    assert result.finished and result.tokens == 12_000
    names = [f"gpt_neox.layers.{i}" for i in range(3)]
    assert list(result.saes) == names == list(load_saes(run / "final"))
    assert sorted(p.name for p in (run / "snapshots").iterdir()) == ["3000", "9000"]
    lines = metric_lines(run)
    first = [line["fvu"] for line in lines[:3]]
    last = [line["fvu"] for line in lines[-3:]]
    assert all(b < 0.7 * a for a, b in zip(first, last, strict=True))
    assert lines[-1]["tokens"] == 12_000 and lines[-1]["l0"] == 4
    assert {line["hook_point"] for line in lines} == set(names)
    # Again: nothing to do, the same SAEs come back.
    again = tb.train(config(snapshots=[3000, 9000]), progress=False)
    x = torch.randn(5, 16)
    assert torch.equal(again.saes[names[0]](x), result.saes[names[0]](x))


@pytest.mark.parametrize("activation", ["batchtopk", "relu", "jumprelu"])
def test_other_activations_train(config, activation):
    sae = {"d_sae": 64, "k": 4, "activation": activation, "normalize": "expected_norm"}
    result = tb.train(
        config(sae=sae, layers=[1], site="mlp_out", decay="cosine", buffer_dtype="bf16"),
        progress=False,
    )
    assert list(result.saes) == ["gpt_neox.layers.1.mlp"]
    lines = metric_lines(result.out)
    assert lines[-1]["fvu"] < lines[0]["fvu"]


def test_killed_three_times_ends_with_identical_weights(config, tmp_path):
    """SIGKILL at three random moments; every weight, every metric as if never interrupted."""
    fields = {"tokens": 60_000, "checkpoint_tokens": 4_000, "snapshots": [30_000]}
    whole = config(out=str(tmp_path / "whole"), **fields)
    tb.train(whole, progress=False)
    killed = config(out=str(tmp_path / "killed"), **fields)
    moments = torch.randint(
        2_000, 55_000, (3,), generator=torch.Generator().manual_seed(time.time_ns())
    )
    kills = 0
    for moment in sorted(moments.tolist()):
        process = start(killed)
        wait_for_tokens(tmp_path / "killed", moment, process)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 1
    process = start(killed)
    assert process.wait() == 0, process.stderr.read().decode()
    for part in ("final", "snapshots/30000"):
        mine, theirs = weights(tmp_path / "whole" / part), weights(tmp_path / "killed" / part)
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert torch.equal(mine[name].nan_to_num(), theirs[name].nan_to_num()), name
    assert metric_lines(tmp_path / "whole") == metric_lines(tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_with_a_checkpoint(config, tmp_path, monkeypatch, number):
    whole = config(out=str(tmp_path / "whole"), checkpoint_minutes=0)
    tb.train(whole, progress=False)
    stopped = config(checkpoint_minutes=0)
    step, calls = loop._Run._step, []

    def interrupting(self, *arguments):
        step(self, *arguments)
        calls.append(None)
        if len(calls) == 20:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(loop._Run, "_step", interrupting)
    result = tb.train(stopped, progress=False)
    assert not result.finished and result.tokens == 20 * 256
    assert (tmp_path / "run" / "checkpoint" / "state.json").is_file()
    result = tb.train(stopped, progress=False)
    assert result.finished and len(calls) == -(-12_000 // 256)
    mine, theirs = weights(tmp_path / "whole" / "final"), weights(tmp_path / "run" / "final")
    assert all(torch.equal(mine[n].nan_to_num(), theirs[n].nan_to_num()) for n in mine)


def edit(path, change):
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


@pytest.fixture
def stopped_run(config, tmp_path, monkeypatch):
    """A run with a checkpoint, stopped half way; its config and directory."""
    step, calls = loop._Run._step, []

    def interrupting(self, *arguments):
        step(self, *arguments)
        calls.append(None)
        if len(calls) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", interrupting)
        tb.train(config(), progress=False)
    return config(), tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("layer_1.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-50]), "layer_1.*truncated"),
        ("layer_0.safetensors", lambda p: p.unlink(), "layer_0.*no such file"),
        ("buffer_1.safetensors", lambda p: p.write_bytes(b"x" * 100), "buffer.*truncated or corrupt"),
        ("state.json", lambda p: p.write_text("{"), r"state\.json: not readable as JSON"),
        ("state.json", lambda p: p.write_text("{}"), r"state\.json: expected format"),
        ("state.json", lambda p: edit(p, lambda s: s.pop("source")), r"state\.json: expected format"),
        ("layer_2.safetensors", lambda p: flip_a_bit(p), r"layer_2\.safetensors: corrupt"),
        ("buffer_1.safetensors", lambda p: flip_a_bit(p), r"buffer_1\.safetensors: corrupt"),
    ],
)
def test_a_damaged_checkpoint_is_named(stopped_run, name, damage, message):
    config, run = stopped_run
    damage(run / "checkpoint" / name)
    with pytest.raises(CheckpointError, match=message):
        tb.train(config, progress=False)


def test_a_kill_between_the_two_renames_of_a_checkpoint_loses_nothing(stopped_run):
    config, run = stopped_run
    (run / "checkpoint").rename(run / "checkpoint.old")
    assert tb.train(config, progress=False).finished
    assert metric_lines(run)[0]["step"] == 5


def test_a_directory_of_another_run_is_refused(stopped_run, config, tmp_path):
    for change, message in (
        ({"lr": 1e-3}, r"lr=0\.003 there, 0\.001 here"),
        ({"sae": {"d_sae": 64, "k": 5}}, r"sae\.k=4 there, 5 here"),
    ):
        with pytest.raises(CheckpointError, match=message):
            tb.train(config(**change), progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(CheckpointError, match="not empty and no trustbench run"):
        tb.train(config(out=str(tmp_path / "other")), progress=False)
    # What changes no number may change: the place as well.
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = config(out=str(tmp_path / "moved"), checkpoint_minutes=3.0, threads=2)
    result = tb.train(moved, progress=False)
    assert result.finished and metric_lines(result.out)[0]["step"] == 5


def test_a_full_disk_leaves_the_last_checkpoint(stopped_run, config):
    stopped, run = stopped_run
    before = (run / "checkpoint" / "state.json").read_bytes()
    with files_end_at(100_000):  # the buffer needs more
        message = r"run/checkpoint: not written \(.*too large.*what was there before is intact"
        with pytest.raises(CheckpointError, match=message):
            tb.train(config(checkpoint_tokens=1000), progress=False)
    assert (run / "checkpoint" / "state.json").read_bytes() == before
    assert not list(run.glob(".checkpoint*"))
    assert tb.train(stopped, progress=False).finished


@pytest.mark.parametrize(
    ("room", "fields", "what"),
    [
        (1_000, {}, r"config\.json"),
        (4_000, {"log_every": 1}, r"metrics\.jsonl"),
        (20_000, {"snapshots": [500]}, "snapshots/500"),
        (20_000, {}, "final"),
    ],
)
def test_a_full_disk_is_named_wherever_it_shows(config, tmp_path, room, fields, what):
    sized = config(sae={"d_sae": 256, "k": 4}, **fields)
    with files_end_at(room), pytest.raises(CheckpointError, match=f"run/{what}: not written"):
        tb.train(sized, progress=False)
    assert tb.train(sized, progress=False).finished
    whole = config(sae={"d_sae": 256, "k": 4}, out=str(tmp_path / "whole"), **fields)
    tb.train(whole, progress=False)
    assert metric_lines(tmp_path / "run") == metric_lines(tmp_path / "whole")


def test_what_a_killed_process_left_half_written_is_removed(stopped_run, config, tmp_path):
    stopped, run = stopped_run
    (run / ".checkpoint.a1b2.tmp").mkdir()
    (run / ".checkpoint.a1b2.tmp" / "layer_0.safetensors").write_bytes(b"half")
    (run / "snapshots" / ".3000.a1b2.tmp").mkdir(parents=True)
    assert tb.train(stopped, progress=False).finished
    assert not list(run.rglob("*.tmp"))
    # Killed while its very first file was written: still an empty directory.
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".config.json.a1b2.tmp").write_text("{")
    assert tb.train(config(out=str(tmp_path / "new")), progress=False).finished
    assert not list((tmp_path / "new").rglob("*.tmp"))


def test_non_finite_activations_stop_the_run_and_leave_it_resumable(config, tmp_path, monkeypatch):
    run_capture, calls = ActivationCapture.run, []

    def poisoned(self, ids):
        acts = run_capture(self, ids)
        calls.append(None)
        if len(calls) == 30:
            acts["gpt_neox.layers.1"][2, 3] = float("nan")
        return acts

    with monkeypatch.context() as patch:
        patch.setattr(ActivationCapture, "run", poisoned)
        with pytest.raises(NonFiniteError, match=r"gpt_neox\.layers\.1: NaN or Inf in 1 of"):
            tb.train(config(checkpoint_minutes=0), progress=False)
    assert continues_without_loss(config, tmp_path)


def continues_without_loss(config, tmp_path, **fields):
    """The stopped run wrote a checkpoint of its last step; continued, it equals one never stopped."""
    last = metric_lines(tmp_path / "run")[-1]["tokens"]
    state = json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())
    assert 0 < last <= state["progress"]["tokens"] < last + 5 * 256
    assert tb.train(config(checkpoint_minutes=0, **fields), progress=False).finished
    tb.train(config(checkpoint_minutes=0, out=str(tmp_path / "whole"), **fields), progress=False)
    mine, theirs = weights(tmp_path / "whole" / "final"), weights(tmp_path / "run" / "final")
    assert all(torch.equal(mine[n].nan_to_num(), theirs[n].nan_to_num()) for n in mine)
    return metric_lines(tmp_path / "whole") == metric_lines(tmp_path / "run")


@pytest.mark.parametrize("pack", [False, True])
def test_bad_data_in_the_middle_loses_nothing(config, tiny_text, tmp_path, pack):
    good = [json.dumps({"text": line}) for line in tiny_text.read_text().splitlines()]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join([*good[:200], "{broken", *good[201:]]))
    fields = {"data": str(data), "pack_documents": pack, "buffer_tokens": 1024}
    with pytest.raises(DataError, match=r"data\.jsonl: line 201 is not JSON"):
        tb.train(config(checkpoint_minutes=0, **fields), progress=False)
    data.write_text("\n".join(good))
    assert continues_without_loss(config, tmp_path, **fields)


def test_bad_input_costs_nothing(config, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    cases = [
        ({"data": str(tmp_path / "absent")}, DataError, "no such file"),
        ({"data": str(empty)}, DataError, "no tokens"),
        ({"layers": [7]}, InputError, r"layers=7: expected layer numbers in \[0, 2\]"),
        ({"layers": ["gpt_neox.layer.1"]}, InputError, "near: gpt_neox"),
        ({"model": str(tmp_path)}, InputError, "expected a folder or hub name"),
        ({"sae": {"d_sae": 64, "k": 4, "d_in": 17}}, InputError, r"sae\.d_in=17: expected 0 or 16"),
        ({"context_length": 65}, InputError, "context_length=65: expected at most the model's 64"),
        ({"out": str(empty)}, InputError, r"out='.*': expected a directory to write in"),
        ({"out": str(empty / "run")}, InputError, r"empty\.txt is not one"),
    ]
    for change, error, message in cases:
        with pytest.raises(error, match=message):
            tb.train(config(**change), progress=False)
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_figures(config, tmp_path):
    pytest.importorskip("tensorboard")
    tb.train(config(sinks=["tensorboard"]), progress=False)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert "gpt_neox.layers.2/fvu" in events.Tags()["scalars"]


def test_tensorboard_of_a_killed_run_is_as_if_it_never_stopped(config, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    step, calls = loop._Run._step, []

    def dying(self, *arguments):
        step(self, *arguments)
        calls.append(None)
        if len(calls) == 30:
            raise RuntimeError("killed")

    watched = config(sinks=["tensorboard"], checkpoint_tokens=20 * 256)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", dying)
        with pytest.raises(RuntimeError, match="killed"):
            tb.train(watched, progress=False)
    tb.train(watched, progress=False)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    name = "gpt_neox.layers.2"
    drawn = [(e.step, e.value) for e in events.Scalars(f"{name}/fvu")]
    lines = [line for line in metric_lines(tmp_path / "run") if line["hook_point"] == name]
    assert drawn == [(line["tokens"], pytest.approx(line["fvu"])) for line in lines]


def test_a_missing_sink_says_what_to_install_before_any_work(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'trustbench\[sinks\]'"):
        tb.train(config(sinks=["wandb"]), progress=False)
    assert not (tmp_path / "run").exists()


def test_trackers_get_init_log_finish(config, tmp_path, monkeypatch):
    class Fake:
        calls: list = []  # noqa: RUF012

        def __getattr__(self, name):
            return lambda *a, **k: self.calls.append((name, a, k))

    monkeypatch.setitem(sys.modules, "trackio", Fake())
    tb.train(config(sinks=["trackio"]), progress=False)
    names = [name for name, _, _ in Fake.calls]
    assert names[0] == "init" and names[-1] == "finish" and "log" in names
