"""Activation caches: what is written is what a model gives, once, whole, and trained on as such."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import trustbench as tb
from trustbench import files
from trustbench.activations import (
    ActivationCache,
    CacheSource,
    CaptureConfig,
    cache,
    capture,
)
from trustbench.cli import main
from trustbench.data import Documents, TokenStream
from trustbench.errors import DataError, InputError, NonFiniteError
from trustbench.evals import EvalConfig
from trustbench.models import ActivationCapture, load_model, resolve_hook_points
from trustbench.sae import load_saes

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny_model_dir, tiny_text, tmp_path):
    def make(**fields):
        base = {
            "model": str(tiny_model_dir), "data": str(tiny_text), "out": str(tmp_path / "cache"),
            "tokens": 3000, "shard_tokens": 1000, "context_length": 32, "model_rows": 8,
            "heldout_fraction": 0.2, "document_separator": "\n",
        }  # fmt: skip
        return CaptureConfig(**base | fields)

    return make


@pytest.fixture
def captured(config):
    return tb.capture(config(), progress=False)


def contents(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(path.iterdir()) if f.name != "index.json"}


def from_the_model(settings: CaptureConfig) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Activations and ids of the same tokens, row by row."""
    model, tokenizer = load_model(settings.model)
    stream = TokenStream(
        Documents(settings.data, separator=settings.document_separator),
        tokenizer, settings.context_length, 1, part="train",
        heldout_fraction=settings.heldout_fraction, prepend_bos=settings.prepend_bos, repeat=False,
    )  # fmt: skip
    points = resolve_hook_points(model, settings.layers, settings.site)
    model_capture = ActivationCapture(model, points)
    acts, ids = {point.name: [] for point in points}, []
    first = int(settings.prepend_bos)
    for batch in stream:
        for name, a in model_capture.run(batch.input_ids).items():
            acts[name].append(a[0, first:])
        ids.append(batch.input_ids[0, first:])
    n = settings.tokens
    return {name: torch.cat(a)[:n] for name, a in acts.items()}, torch.cat(ids)[:n]


@pytest.mark.parametrize(
    "fields",
    [{"dtype": "fp32"}, {"prepend_bos": True}, {"layers": [1], "site": "mlp_out", "dtype": "fp16"}],
)
def test_numpy_alone_reads_what_the_model_gives(config, fields):
    settings = config(**fields)
    acts, ids = from_the_model(settings)
    tb.capture(settings, progress=False)
    index = json.loads((Path(settings.out) / "index.json").read_text())
    assert index["complete"] and len(index["shards"]) == 3
    read: dict[str, list[np.ndarray]] = {}
    for shard in index["shards"]:
        path = Path(settings.out) / shard["file"]
        with path.open("rb") as file:  # the safetensors format, by hand
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        for name, entry in header.items():
            kinds = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4"}
            begin = 8 + size + entry["data_offsets"][0]
            array = np.memmap(path, kinds[entry["dtype"]], "r", begin, tuple(entry["shape"]))
            if entry["dtype"] == "BF16":
                array = (array.astype(np.uint32) << 16).view(np.float32)
            read.setdefault(name, []).append(np.asarray(array))
    whole = {name: np.concatenate(parts) for name, parts in read.items()}
    assert whole["token_ids"].tolist() == ids.tolist()
    # A row's positions ascend from 0: the tokens before one are its passage.
    steps = np.diff(whole["positions"])
    assert whole["positions"][0] == 0 and ((steps == 1) | (whole["positions"][1:] == 0)).all()
    assert whole["positions"].max() < settings.context_length
    tolerance = {"fp32": 1e-5, "fp16": 2**-10, "bf16": 2**-7}[settings.dtype]
    for name, wanted in acts.items():
        found = torch.from_numpy(whole[name].astype(np.float32))
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=1e-4)


def test_a_shard_is_half_a_gigabyte_unless_told(config, monkeypatch):
    assert len(tb.capture(config(shard_tokens=0), progress=False).shards) == 1
    # 3 hook points of 16 numbers in bf16, an id and a position: 104 bytes a token.
    monkeypatch.setattr(capture, "_SHARD_BYTES", 104 * 700)
    other = config(shard_tokens=0, out=config().out + "-2")
    assert len(tb.capture(other, progress=False).shards) == 4


def test_the_text_may_end_first(config):
    found = tb.capture(config(tokens=10**6, shard_tokens=8000), progress=False)
    assert found.complete and 8000 < found.tokens < 10**6
    assert len(found) == sum(shard.tokens for shard in found.shards)


def test_a_stopped_capture_goes_on_to_the_same_files(config, tmp_path, monkeypatch):
    whole = contents(tb.capture(config(), progress=False).path)
    half = config(out=str(tmp_path / "half"))
    flush, calls = cache.CacheWriter.flush, []

    def stopping(self, *args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        flush(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(cache.CacheWriter, "flush", stopping)
        with pytest.raises(KeyboardInterrupt):
            tb.capture(half, progress=False)
    part = ActivationCache(half.out)
    assert not part.complete and len(part.shards) == 2
    (Path(half.out) / ".shard_00002.safetensors.x.tmp").write_bytes(b"half a shard")
    assert tb.capture(half, progress=False).complete
    assert contents(Path(half.out)) == whole
    # Once complete, nothing is done again.
    monkeypatch.setattr(capture, "ModelSource", None)
    assert tb.capture(half, progress=False).tokens == 3000


def test_sigkill_loses_only_the_shard_under_way(config, tmp_path):
    whole = contents(tb.capture(config(shard_tokens=200), progress=False).path)
    killed = config(shard_tokens=200, out=str(tmp_path / "killed"))
    arguments = [
        f"--{name}={value}" for name, value in dataclasses.asdict(killed).items() if value != "all"
    ]
    command = [sys.executable, "-m", "trustbench", "capture", *arguments]
    target = Path(killed.out) / "index.json"
    for wanted in (2, 5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = time.monotonic() + 60
        while time.monotonic() < limit and process.poll() is None:
            if target.exists() and len(files.read_json(target)["shards"]) >= wanted:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(ActivationCache(killed.out).shards) >= wanted
        ActivationCache(killed.out).verify()
    tb.capture(killed, progress=False)
    assert contents(Path(killed.out)) == whole


def damaged(captured, how):
    file = captured.path / "shard_00001.safetensors"
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        os.truncate(file, file.stat().st_size - 100)
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["missing", "truncated", "corrupt"])
def test_a_damaged_shard_is_named_and_never_trained_on(captured, tmp_path, how):
    damaged(captured, how)
    with pytest.raises(DataError, match=rf"shard_00001.safetensors: {how}"):
        ActivationCache(captured.path).verify()
    with pytest.raises(DataError, match=rf"shard_00001.safetensors: {how}"):
        tb.train(training(captured, tmp_path, tokens=6000), progress=False)
    assert not (tmp_path / "run" / "final").exists()


def test_a_full_disk_stops_with_a_clear_error_and_a_usable_cache(config, monkeypatch):
    save, calls = files.save_tensors, []

    def full(*args, **kwargs):
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        calls.append(1)
        save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_tensors", full)
        with pytest.raises(DataError, match=r"No space left.*its 1 shards are whole.*goes on"):
            tb.capture(config(), progress=False)
    ActivationCache(config().out).verify()
    assert tb.capture(config(), progress=False).complete


def test_a_disk_that_is_too_small_is_refused_before_the_first_forward(config, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=150_000))
    with pytest.raises(DataError, match=r"needs 0.00 GB.*--tokens 1\d\d\d would fit"):
        tb.capture(config(), progress=False)


def test_activations_that_are_not_finite_are_not_written(config, monkeypatch):
    pull = capture.ModelSource.pull

    def broken(self):
        rows = pull(self)
        next(iter(rows.acts.values()))[3, 3] = float("inf")
        return rows

    monkeypatch.setattr(capture.ModelSource, "pull", broken)
    with pytest.raises(NonFiniteError, match=r"gpt_neox.layers.0: NaN or Inf at token 3"):
        tb.capture(config(), progress=False)


def test_what_overflows_the_stored_dtype_is_not_written(config, monkeypatch):
    pull = capture.ModelSource.pull

    def large(self):
        rows = pull(self)
        next(iter(rows.acts.values()))[5, 0] = 1e5  # finite, above fp16's largest number
        return rows

    monkeypatch.setattr(capture.ModelSource, "pull", large)
    with pytest.raises(NonFiniteError, match=r"gpt_neox.layers.0: NaN or Inf at token 5"):
        tb.capture(config(dtype="fp16"), progress=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 2000}, "its tokens is 3000, not 2000"),
        ({"layers": [0]}, r"its layers is 'all', not \[0\]"),
    ],
)
def test_another_capture_is_not_written_over(captured, config, fields, message):
    with pytest.raises(InputError, match=message):
        tb.capture(config(**fields), progress=False)


def test_bad_settings_are_refused(config, tmp_path):
    for fields in (
        {"model": ""}, {"tokens": 0}, {"shard_tokens": -1}, {"dtype": "int8"}, {"site": "head"},
        {"heldout_fraction": 0.9}, {"context_length": 1}, {"context_length": 65}, {"layers": [9]},
    ):  # fmt: skip
        (name,) = fields
        with pytest.raises(InputError, match=f"{name}="):
            tb.capture(config(**fields), progress=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="an empty or new directory"):
        tb.capture(config(out=str(tmp_path / "full")), progress=False)
    with pytest.raises(InputError, match="a directory"):
        tb.capture(config(out=str(tmp_path / "full" / "thesis.tex")), progress=False)
    with pytest.raises(DataError, match="no tokens"):
        (tmp_path / "empty.txt").write_text("\n")
        tb.capture(config(data=str(tmp_path / "empty.txt")), progress=False)


# ------------------------------------------------------------------ training from a cache


def training(captured, tmp_path, **fields):
    base = {
        "activations": str(captured.path), "out": str(tmp_path / "run"), "tokens": 9000,
        "sae": {"d_sae": 64, "k": 4, "normalize": "expected_norm"}, "batch_size": 256, "lr": 3e-3,
        "dead_after_tokens": 2000, "log_every": 5, "threads": 1,
    }  # fmt: skip
    return tb.TrainConfig.from_dict(base | fields)


def test_every_token_comes_once_an_epoch_in_an_order_of_its_own(captured):
    source = CacheSource(captured, list(captured.widths), 300, CPU, seed=3)
    name = next(iter(captured.widths))
    wanted = torch.cat([captured.read(i).acts[name] for i in range(3)])
    orders = []
    for _ in range(3):
        pulled = []
        while sum(map(len, pulled)) < captured.tokens:
            pulled.append(source.pull().acts[name])
        found = torch.cat(pulled)
        orders.append(found)
        rows = {tuple(row) for row in found.tolist()}
        assert len(found) == captured.tokens and rows == {tuple(row) for row in wanted.tolist()}
    assert any(not torch.equal(orders[0], other) for other in orders[1:])
    again = CacheSource(captured, [name], 300, CPU, seed=3)  # another reader, the same order
    assert torch.equal(again.pull().acts[name], orders[0][:300])


def test_processes_share_an_epoch(captured):
    name = next(iter(captured.widths))
    found = []
    for rank in range(2):
        source = CacheSource(captured, [name], 300, CPU, 5, share=(rank, 2))
        while source.epoch == 0:
            found.append(source.pull().acts[name])
    wanted = torch.cat([captured.read(i).acts[name] for i in range(3)])
    assert sum(map(len, found)) == captured.tokens
    rows = {tuple(row) for row in torch.cat(found).tolist()}
    assert rows == {tuple(row) for row in wanted.tolist()}
    with pytest.raises(InputError, match=r"share=\(2, 2\)"):
        CacheSource(captured, [name], 300, CPU, 5, share=(2, 2))
    with pytest.raises(InputError, match="at least 4 shards"):
        CacheSource(captured, [name], 300, CPU, 5, share=(0, 4))


def test_a_place_is_found_again(captured):
    source = CacheSource(captured, list(captured.widths), 300, CPU, seed=0)
    for _ in range(5):
        source.pull()
    place = json.loads(json.dumps(source.state_dict()))
    expected = [source.pull() for _ in range(9)]
    source.load_state_dict(place)  # back, in the same object
    other = CacheSource(captured, list(captured.widths), 300, CPU, seed=0)
    other.load_state_dict(place)
    for rows in expected:
        for found in (source.pull(), other.pull()):
            assert torch.equal(found.token_ids, rows.token_ids)
            assert all(torch.equal(found.acts[n], a) for n, a in rows.acts.items())
    with pytest.raises(InputError, match="the 7 shards that the run was started with"):
        source.load_state_dict(place | {"shards": 7})


def test_training_needs_no_model_and_learns_as_much(captured, tmp_path, monkeypatch):
    settings = training(captured, tmp_path)
    live = tb.TrainConfig.from_dict(
        {n: v for n, v in settings.completed().to_dict().items() if n != "activations"}
        | {"out": str(tmp_path / "live")}
    )
    tb.train(live, progress=False)
    monkeypatch.setattr("trustbench.activations.sources.load_model", None)
    result = tb.train(settings, progress=False)
    assert result.finished and set(result.saes) == set(captured.widths)
    last = [
        [json.loads(x)["fvu"] for x in (Path(c.out) / "metrics.jsonl").read_text().splitlines()][-3:]
        for c in (live, settings)
    ]
    for mine, theirs in zip(*last, strict=True):
        assert mine == pytest.approx(theirs, rel=0.2)
    # The run knows its text: evaluation works as for any other.
    report = tb.evaluate(EvalConfig(run=settings.out, tokens=500, spliced_tokens=200))
    assert {row["hook_point"] for row in report} == set(captured.widths)


def test_a_run_from_a_cache_resumes_bit_for_bit(captured, tmp_path):
    settings = training(captured, tmp_path, tokens=5000, checkpoint_tokens=2500)
    tb.train(settings, progress=False)
    final = Path(settings.out) / "final"
    kept = {n: sae.state_dict() for n, sae in load_saes(final).items()}
    shutil.rmtree(final)
    assert tb.train(settings, progress=False).finished
    for name, sae in load_saes(final).items():
        for key, value in sae.state_dict().items():
            torch.testing.assert_close(value, kept[name][key], rtol=0, atol=0, equal_nan=True)


def test_some_of_the_cached_layers(captured, tmp_path):
    names = list(captured.widths)
    assert captured.select([1, names[0], "blocks.1.hook_resid_post"]) == [names[1], names[0]]
    assert captured.select(names[2]) == [names[2]]
    result = tb.train(training(captured, tmp_path, layers=[2], tokens=1000), progress=False)
    assert list(result.saes) == [names[2]]
    with pytest.raises(InputError, match=r"layers=7: expected 'all' or some of the cached"):
        captured.select([7])


def test_what_contradicts_the_capture_is_refused(captured, tmp_path):
    with pytest.raises(InputError, match=r"context_length=64: expected 32, as .* was captured"):
        tb.train(training(captured, tmp_path, context_length=64), progress=False)
    with pytest.raises(InputError, match="model='other'"):
        tb.train(training(captured, tmp_path, model="other"), progress=False)
    with pytest.raises(DataError, match="no activation cache"):
        tb.train(training(captured, tmp_path, activations=str(tmp_path)), progress=False)
    (tmp_path / "index.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="expected format 'trustbench-activations-1'"):
        ActivationCache(tmp_path)
    with pytest.raises(InputError, match="missing model, data"):
        tb.TrainConfig.from_dict({"out": "o", "tokens": 1, "sae": {}})


def test_the_command_line(config, tmp_path, capsys):
    settings = config(tokens=1500)
    flags = [f"--{n}={v}" for n, v in dataclasses.asdict(settings).items() if v != "all"]
    assert main(["capture", *flags]) == 0
    printed = capsys.readouterr().out
    assert "needs 0.00 GB" in printed and f"1500 tokens, 2 shards, 0.00 GB: {settings.out}" in printed
    out = str(tmp_path / "cli-run")
    trained = ["--activations", settings.out, "--out", out, "--tokens=600", "--batch_size=256"]
    assert main(["train", *trained, "--sae.d_sae=32", "--sae.k=4"]) == 0
    assert "3 SAEs, 600 tokens each" in capsys.readouterr().out
    assert main(["capture", *flags[:-1], "--shard_tokns=5"]) == 2
    assert "did you mean 'shard_tokens'" in capsys.readouterr().err
