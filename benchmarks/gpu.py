"""On a GPU: the tests, kernels tuned, ops and steps against floors and peers, whole runs.

A rehearsal runs the same code in Triton's interpreter, at toy sizes.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import report, suite
from benchmarks.cases import ROUNDS, cases
from benchmarks.clocks import clock_of, failure, seconds
from benchmarks.floors import measure_ceilings
from benchmarks.record import Row, about
from benchmarks.scaling_ranks import speed
from benchmarks.workers import ROOT, measure_here
from trustbench import ops
from trustbench.errors import bad
from trustbench.models import load_model
from trustbench.report import Table
from trustbench.sae import SAEConfig
from trustbench.studies.demo import assets
from trustbench.studies.demo.run import demo_config
from trustbench.training import TrainConfig, train
from trustbench.training.memory import predict
from trustbench.training.tune import timings

# Regimes of a whole run: the activation, and fields of TrainConfig.
REGIMES: dict[str, tuple[Any, dict[str, Any]]] = {
    "TopK": ("topk", {}),
    "TopK, bf16 state": ("topk", {"state_dtype": "bf16"}),
    "ReLU": ("relu", {}),
    "BatchTopK": ("batchtopk", {}),
}
_WIDTH = 1024  # of Pythia-410M


def run(out: Path, *, rehearse: bool = False) -> int:
    """Measure, write `out`/gpu.{jsonl,about.json,md,html}; 1 when a check or one of ours failed.

    Raises
    ------
    InputError
        Without a GPU.
    """
    if not (rehearse or torch.cuda.is_available()):
        raise bad("gpu", True, "a CUDA device that torch sees; --rehearse runs without one")
    device = torch.device("cpu" if rehearse else "cuda")
    scale = "toy" if rehearse else "gpu"
    ceilings = measure_ceilings(device, partial(seconds, clock=clock_of(device)), small=rehearse)
    said, rows = about(scale, ceilings, device), Table()
    here = partial(measure_here, device=device)
    stages: dict[str, Callable[[], Iterator[Row]]] = {
        "checks": partial(_checks, rehearse),
        "tune": partial(_tuned, scale, device),
        "ops": lambda: suite.ops_rows(cases("ops", scale, gpu=True), ROUNDS[scale], device, ceilings),
        **{
            subject: partial(suite.timed, subject, scale, ceilings, here, gpu=True)
            for subject in ("step", "buffer", "attention")
        },
        "train": partial(_train, scale, device),
    }
    with ops.use("triton"):
        for subject, stage in stages.items():
            print(f"{subject} ...", flush=True)
            for row in _guarded(stage):
                rows.append({"subject": subject} | row)
    report.write(rows, said, out / "gpu")
    print(report.markdown(rows))
    failed = suite.failures(rows) + [
        f"{row['contender']}: {row['outcome']}" for row in rows if row.get("outcome", "ok") != "ok"
    ]
    for line in failed:
        print(f"FAILED: {line}", file=sys.stderr)
    return int(bool(failed))


def _guarded(stage: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """A stage that fails costs what it has not measured, and not the stages after it."""
    try:
        yield from stage()
    except Exception as error:
        yield {"case": "the rest", "contender": "trustbench", "absent": failure(error)}


def _checks(rehearse: bool) -> Iterator[Row]:
    """The tests of every op and of the buffer on the device, the buffer's under compute-sanitizer."""
    find = partial(shutil.which, "compute-sanitizer")
    tool = find() or find(path="/usr/local/cuda/bin")
    sanitizer = [tool, "--error-exitcode=9"] if tool and not rehearse else []
    chosen = "decode and triton and 1x1x1x1" if rehearse else "triton"
    for name, words in (
        ("ops", [sys.executable, "-m", "pytest", "tests/ops", "-k", chosen]),
        ("buffer", [*sanitizer, sys.executable, "-m", "pytest", "tests/buffer/test_devices.py"]),
    ):
        command = [*words, "-q", "-x", "-p", "no:cacheprovider"]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        last = (ran.stdout.strip().splitlines() or [ran.stderr.strip()[-200:]])[-1]
        outcome = "ok" if ran.returncode == 0 else f"WRONG: {last}"
        yield {"case": "tests", "contender": name, "outcome": outcome}


def _tuned(scale: str, device: torch.device) -> Iterator[Row]:
    (case,) = cases("step", scale, gpu=True)
    N, d, F, k = (case.options[name] for name in "NdFk")
    clock = clock_of(device)
    timer = clock if scale == "toy" else partial(seconds, clock=clock)
    for found in timings(d, F, k, N, device, timer):
        yield {"case": case.label, "contender": found.name, "configurations": found.seconds}


def _train(scale: str, device: torch.device) -> Iterator[Row]:
    """`tb.train` itself: tokens a second by its metrics, in each regime; fvu against the CPU."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        layers, d = (1, 8) if scale == "toy" else (24, _WIDTH)
        _write_model(folder / "model", layers, d)
        for name in REGIMES:
            config = _config(folder, name, scale, device)
            yield {"case": f"{layers} layers, d = {d}", "contender": f"trustbench, {name}"} | _ran(
                config
            )
        yield from _parity(folder, scale, device)


def _write_model(path: Path, layers: int, d: int) -> None:
    """A GPT-NeoX of Pythia's proportions with random weights, with the demo's tokenizer."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    _, tokenizer = load_model(str(assets.MODEL))
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=d, num_hidden_layers=layers,
        num_attention_heads=max(1, d // 64), intermediate_size=4 * d, max_position_embeddings=2048,
    )  # fmt: skip
    GPTNeoXForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)


def _config(folder: Path, name: str, scale: str, device: torch.device) -> TrainConfig:
    (case,) = cases("step", scale, gpu=True)
    o, toy, (activation, fields) = case.options, scale == "toy", REGIMES[name]
    sae = SAEConfig(d_sae=o["F"], k=o["k"], activation=activation, l1_coefficient=1e-4, auxk=0)
    return TrainConfig(
        model=str(folder / "model"), data=str(assets.TRAIN_TEXT), out=str(folder / name), sae=sae,
        tokens=(2 if toy else 100) * o["N"], batch_size=o["N"], context_length=16 if toy else 1024,
        model_rows=1 if toy else 16, log_every=1 if toy else 20, checkpoint_minutes=0,
        device=str(device), **fields,
    )  # fmt: skip


def _ran(config: TrainConfig) -> dict[str, Any]:
    on_gpu = config.device != "cpu"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    train(config, progress=False)
    metrics = Table.read(Path(config.out) / "metrics.jsonl")
    found = {"tokens_per_second": speed(list(metrics)), "l0": metrics[-1]["l0"]}
    if on_gpu:
        widths = dict.fromkeys(metrics.unique("hook_point"), _WIDTH)
        size = sum(p.stat().st_size for p in Path(config.model).glob("*.safetensors"))
        needs = predict(config, widths, size)
        found |= {"peak_mb": torch.cuda.max_memory_allocated() / 2**20}
        found |= {"predicted_mb": (needs.total - needs.other) / 2**20}
    return found


def _parity(folder: Path, scale: str, device: torch.device) -> Iterator[Row]:
    """The worst layer's fvu after equal runs of the demo: on the CPU in fp32, and on the device."""
    for name, where in (("CPU, fp32", "cpu"), ("trustbench, the device", str(device))):
        config = demo_config(folder / name, tokens=64 if scale == "toy" else 200_000)
        changes: dict[str, Any] = {"device": where, "log_every": 1}
        if name == "CPU, fp32":
            changes |= {"matmul_dtype": "fp32", "model_dtype": "fp32", "buffer_dtype": "fp32"}
        if scale == "toy":
            changes |= {"sae": SAEConfig(d_sae=16, k=4), "batch_size": 32, "layers": [1]}
            changes |= {"context_length": 16, "model_rows": 4, "buffer_tokens": 128}
        config = dataclasses.replace(config, **changes)
        with ops.use("auto" if name == "CPU, fp32" else "triton"):
            train(config, progress=False)
        metrics = Table.read(Path(config.out) / "metrics.jsonl")
        last = metrics.where(tokens=metrics[-1]["tokens"])
        yield {"case": f"the demo's model, {config.tokens:,} tokens", "contender": name,
               "worst_fvu": max(last["fvu"])}  # fmt: skip
