"""Runs whose buffer spills to disk: the same guarantees as without."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
import torch

import trustbench as tb
from tests.faults import files_end_at, flip_a_bit
from tests.training.runs import metric_lines, start, wait_for_tokens, weights
from trustbench.errors import CheckpointError, DataError, InputError
from trustbench.training import loop

# 3 layers of 16 numbers in fp32, segments of 128 tokens: an eighth of the pool.
POOL, SEGMENT = 1024, 4096 + 128 * 3 * 16 * 4
FIELDS = {"buffer_tokens": POOL, "spill_disk_gb": 12 * SEGMENT / 1e9}


def spilled(run):
    return sorted((run / "spill").glob("segment-*.spill"))


def test_a_run_that_spills_mixes_more_and_leaves_no_files(config, tmp_path):
    plain = tb.train(config(out=str(tmp_path / "plain"), buffer_tokens=POOL), progress=False)
    result = tb.train(config(**FIELDS), progress=False)
    assert result.finished and not (tmp_path / "run" / "spill").exists()
    last, other = metric_lines(result.out)[-3:], metric_lines(plain.out)[-3:]
    for mine, theirs in zip(last, other, strict=True):
        assert mine["fvu"] == pytest.approx(theirs["fvu"], rel=0.2)
        assert mine["fvu"] != theirs["fvu"]  # another order


@pytest.mark.parametrize("kind", ["fp32", "fp8"])
def test_killed_while_it_spills_it_ends_with_identical_weights(config, tmp_path, kind):
    fields = FIELDS | {"tokens": 40_000, "checkpoint_tokens": 3_000, "buffer_dtype": kind}
    fields |= {"spill_host_gb": 5 * SEGMENT / 1e9}
    tb.train(config(out=str(tmp_path / "whole"), **fields), progress=False)
    killed, kills = config(**fields), 0
    for moment in (5_000, 13_000, 26_000):
        process = start(killed)
        wait_for_tokens(tmp_path / "run", moment, process)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        process.stderr.close()
    assert kills and spilled(tmp_path / "run")
    assert tb.train(killed, progress=False).finished
    mine, theirs = (weights(tmp_path / name / "final") for name in ("whole", "run"))
    assert all(torch.equal(mine[n].nan_to_num(), theirs[n].nan_to_num()) for n in mine)
    assert metric_lines(tmp_path / "whole") == metric_lines(tmp_path / "run")
    assert not (tmp_path / "run" / "spill").exists()


@pytest.fixture
def stopped(config, tmp_path, monkeypatch):
    """A run with a checkpoint and spilled segments."""
    step, calls = loop._Run._step, []

    def interrupting(self, *arguments):
        step(self, *arguments)
        calls.append(None)
        if len(calls) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", interrupting)
        assert not tb.train(config(**FIELDS), progress=False).finished
    assert spilled(tmp_path / "run")
    return config(**FIELDS)


def test_a_damaged_segment_is_named_and_never_trained_on(stopped, tmp_path):
    for path in spilled(tmp_path / "run"):
        flip_a_bit(path)
    for _ in range(2):
        with pytest.raises((DataError, CheckpointError), match=r"segment-\d+\.spill: corrupt"):
            tb.train(stopped, progress=False)


def test_a_missing_segment_is_named_before_any_work(stopped, tmp_path):
    spilled(tmp_path / "run")[0].unlink()
    before = metric_lines(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"run/checkpoint: its buffer .*segment-\d+\.spill"):
        tb.train(stopped, progress=False)
    assert metric_lines(tmp_path / "run") == before


def test_a_run_may_move_with_or_without_its_segments(stopped, config, tmp_path):
    shutil.move(tmp_path / "run" / "spill", tmp_path / "elsewhere")
    moved = config(**FIELDS, spill_dir=str(tmp_path / "elsewhere"))
    assert tb.train(moved, progress=False).finished
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_stops_the_run_and_the_same_command_continues(config, tmp_path):
    whole = tb.train(config(out=str(tmp_path / "whole"), **FIELDS), progress=False)
    started = config(**FIELDS)
    with files_end_at(SEGMENT - 1), pytest.raises((DataError, CheckpointError), match="not written"):
        tb.train(started, progress=False)
    assert tb.train(started, progress=False).finished
    assert metric_lines(tmp_path / "run") == metric_lines(whole.out)


def test_bad_settings_cost_nothing(config, tmp_path):
    for fields, words in (
        ({"spill_disk_gb": -1.0}, r"spill_disk_gb=-1\.0: expected a finite number >= 0"),
        ({"spill_disk_gb": 1e-9}, r"disk_bytes=1: expected at least"),
        ({"spill_host_gb": 1e-9}, r"host_bytes=1: expected at least"),
        (FIELDS | {"buffer_tokens": 512, "batch_size": 470, "model_rows": 1},
         "buffer_tokens=512: expected at least 538 to spill"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            tb.train(config(**{"buffer_tokens": POOL} | fields), progress=False)
    with pytest.raises(DataError, match="bytes free"):
        tb.train(config(buffer_tokens=POOL, spill_disk_gb=1e9), progress=False)
