"""One side of same_as.py: does one part with the trustbench of one checkout, and notes all it gives.

    python same_as_probe.py PART FOLDER    (model and text lie in FOLDER/.., results go to FOLDER)

It runs with versions of trustbench that differ in how things are called, so it uses the command line
where it can; where it cannot, `named` tries names in order, the newest first. What a part gives is
{case: {figure: a tensor, a number or a list of numbers}}.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import trustbench

Figures = dict[str, Any]

TOPK = {"activation": "topk", "d_sae": 64, "k": 4}
AUXK = TOPK | {"auxk": 8, "auxk_coefficient": 0.5}
BATCHTOPK = {"activation": "batchtopk", "d_sae": 63, "k": 3, "auxk": 8}
RELU = {"activation": "relu", "d_sae": 64, "l1_coefficient": 0.02}
JUMPRELU = {"activation": "jumprelu", "d_sae": 64, "l0_coefficient": 0.01, "bandwidth": 0.2}
TANH = JUMPRELU | {"l0_form": "tanh"}
SPILLING = {"buffer_tokens": 1024, "spill_disk_gb": 1.6e-3}  # twelve segments of 128 tokens

# {case: (the SAEs, other settings of the run)}
RUNS: dict[str, tuple[Figures, Figures]] = {
    "topk": (TOPK | {"auxk": 0}, {}),
    "topk, auxk": (AUXK, {"snapshots": [1000, 3000]}),
    "topk, clipped": (AUXK, {"clip_norm": 0.1}),
    "topk, expected_norm": (AUXK | {"normalize": "expected_norm"}, {}),
    "topk, no unit norm, untied": (AUXK | {"unit_norm": False, "tied_init": False}, {}),
    "topk, bf16 matmuls": (AUXK, {"matmul_dtype": "bf16"}),
    "topk, schedules": (AUXK, {"decay": "cosine", "warmup_fraction": 0.3, "b_dec_init": "mean"}),
    "topk, MXFP8 buffer": (AUXK, {"buffer_dtype": "fp8"}),
    "topk, bf16 buffer": (AUXK, {"buffer_dtype": "bf16"}),
    "topk, spilled": (AUXK, SPILLING),
    "topk, two layers by number": (AUXK, {"layers": [2, 0], "site": "mlp_out"}),
    "batchtopk, auxk": (BATCHTOPK, {}),
    "batchtopk, clipped": (BATCHTOPK, {"clip_norm": 0.1}),
    "relu, sum": (RELU | {"l1_form": "sum"}, {}),
    "relu, decoder_norm": (RELU, {}),
    "relu, decoder_norm, no unit norm": (RELU | {"unit_norm": False}, {}),
    "relu, clipped": (RELU, {"clip_norm": 0.1}),
    "jumprelu, l0": (JUMPRELU, {}),
    "jumprelu, tanh": (TANH, {"clip_norm": 0.1}),
    "jumprelu, bf16 matmuls": (JUMPRELU, {"matmul_dtype": "bf16"}),
}
STOPPED = ["topk, auxk", "topk, spilled", "topk, MXFP8 buffer", "batchtopk, auxk", "jumprelu, l0"]
DIVIDED = ["topk, clipped", "topk, expected_norm", "batchtopk, clipped", "relu, clipped"]
DIVIDED += ["jumprelu, tanh", "topk, MXFP8 buffer"]

# {case: (the SAE, settings of the trainer)}; a trainer begins with a sparse code of an exact size.
SPARSE, DENSE = {"dense_above": math.inf}, {"dense_above": 0.0}
STEPS: dict[str, tuple[Figures, Figures]] = {
    "topk": ({"activation": "topk", "auxk": 0}, {}),
    "topk, auxk": ({"activation": "topk", "auxk": 8}, {}),
    "topk, auxk, clipped": ({"activation": "topk", "auxk": 8}, {"clip_norm": 0.1}),
    "topk, bf16": ({"activation": "topk", "auxk": 8}, {"dtype": "bf16"}),
    "topk, bf16 moments": ({"activation": "topk", "auxk": 0}, {"moments": "bf16"}),
    "batchtopk, auxk": ({"activation": "batchtopk", "auxk": 4}, {}),
    "batchtopk, bf16, clipped": ({"activation": "batchtopk"}, {"dtype": "bf16", "clip_norm": 0.1}),
    "relu, sum": ({"activation": "relu", "l1_form": "sum"}, SPARSE),
    "relu, sum, dense": ({"activation": "relu", "l1_form": "sum"}, DENSE),
    "relu, decoder_norm": ({"activation": "relu", "unit_norm": False}, SPARSE),
    "relu, clipped, bf16": ({"activation": "relu"}, SPARSE | {"clip_norm": 0.1, "dtype": "bf16"}),
    "relu, dense, clipped": ({"activation": "relu"}, DENSE | {"clip_norm": 0.1}),
    "relu, dense, bf16": ({"activation": "relu"}, DENSE | {"dtype": "bf16", "moments": "bf16"}),
}


def named(*names: str) -> Any:
    """The first of these that this version has, each as "module:name"."""
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ModuleNotFoundError, AttributeError):
            continue
    raise SystemExit(
        f"none of {', '.join(names)} is here: scripts/same_as_probe.py must know the new name"
    )


def command(*arguments: object) -> int:
    """`trustbench ARGUMENTS`, in this process; its exit status."""
    status = named("trustbench.cli:main")([str(argument) for argument in arguments])
    torch.set_num_threads(1)
    return status


def must(*arguments: object) -> None:
    """`trustbench ARGUMENTS`, which succeeds."""
    if status := command(*arguments):
        raise SystemExit(f"trustbench {' '.join(map(str, arguments))}: exit status {status}")


# ---------------------------------------------------------------- what lies on disk


def tensors(folder: Path) -> Figures:
    """Every tensor of every safetensors file below a folder, by the file's folder and its name."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        place = path.parent if path.stem in ("model", "sae", "weights") else path
        for name, tensor in load_file(path).items():
            found[f"{place.relative_to(folder)}/{name}"] = tensor
    if not found:
        raise SystemExit(f"{folder}: no tensors there")
    return found


def lines(path: Path) -> list[Figures]:
    """The rows of a table of results."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def trained(run: Path) -> Figures:
    """All that a run leaves: weights, snapshots, and what it wrote while it trained."""
    found = {f"final/{name}": tensor for name, tensor in tensors(run / "final").items()}
    if (run / "snapshots").exists():
        found |= {f"snapshots/{name}": t for name, t in tensors(run / "snapshots").items()}
    for number, line in enumerate(lines(run / "metrics.jsonl")):
        for key, value in line.items():
            if key != "tokens_per_second":
                found[f"metrics.jsonl, line {number + 1}: {key}"] = value
    return found


def settings(folder: Path, case: str, out: Path, **fields: Any) -> Path:
    """The file that describes a run, for `trustbench train --config`."""
    sae, others = RUNS[case]
    base = {
        "model": str(folder.parent / "model"), "data": str(folder.parent / "text.txt"),
        "document_separator": "\n", "out": str(out), "sae": sae, "tokens": 5_000, "batch_size": 255,
        "context_length": 32, "model_rows": 8, "heldout_fraction": 0.2, "lr": 3e-3, "log_every": 5,
        "dead_after_tokens": 500, "matmul_dtype": "fp32", "device": "cpu", "threads": 1,
    }  # fmt: skip
    path = out.with_suffix(".json")
    path.write_text(json.dumps(base | others | fields))
    return path


def place(folder: Path, name: str) -> Path:
    """Where a run is written."""
    return folder / name.replace(", ", "-").replace(" ", "_")


# ---------------------------------------------------------------- parts


def train(folder: Path) -> dict[str, Figures]:
    """A run of every kind, through the command line."""
    found = {}
    for case in RUNS:
        out = place(folder, case)
        must("train", "--config", settings(folder, case, out))
        found[case] = trained(out)
        if "auxk" in case and not any(
            value for name, value in found[case].items() if name.endswith(": auxk")
        ):
            raise SystemExit(f"{case}: AuxK never took part, so this shows nothing of it")
    _must_differ(found)
    return found


def _must_differ(found: dict[str, Figures]) -> None:
    """Every case shows something of its own: its weights are those of no other."""
    seen: dict[bytes, str] = {}
    for case, figures in found.items():
        weights = [v for n, v in figures.items() if n.endswith("W_dec") and "snapshots" not in n][-1]
        other = seen.setdefault(weights.float().numpy().tobytes(), case)
        if other != case:
            raise SystemExit(f"{case}: it gives what {other!r} gives, so it shows nothing")


def resume(folder: Path) -> dict[str, Figures]:
    """Runs that are stopped midway and continued, beside whole ones."""
    found = {}
    for case in STOPPED:
        for how in ("whole", "resumed"):
            out = place(folder, f"{case}, {how}")
            path = settings(folder, case, out, tokens=8_000)
            if how == "resumed":
                stop = threading.Thread(target=_stop_midway, args=(out / "metrics.jsonl",))
                stop.start()
                if command("train", "--config", path) != 130:
                    raise SystemExit(f"{case}: it did not stop")
                stop.join()
            must("train", "--config", path)
            found[f"{case}, {how}"] = trained(out)
    return found


def _stop_midway(metrics: Path) -> None:
    """SIGTERM to this process once its run has written of ten steps of 32, on three layers."""
    while not metrics.exists() or metrics.read_text().count("\n") < 6:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)


def ranks(folder: Path) -> dict[str, Figures]:
    """Two processes, which divide layers or tokens; started by torchrun."""
    import torch.distributed as dist
    import torch.distributed.nn  # noqa: F401  # while no group is there: it keeps what it finds

    dist.init_process_group("gloo")
    found = {}
    for case in DIVIDED:
        for how in ("layers", "tokens"):
            out = place(folder, f"{case}, {how}")
            path = out.with_suffix(".json")
            if dist.get_rank() == 0:
                settings(folder, case, out, parallel=how)
            dist.barrier()
            must("train", "--config", path)
            dist.barrier()
            found[f"{case}, {how}"] = trained(out)
    dist.destroy_process_group()
    return found


def results(folder: Path) -> dict[str, Figures]:
    """`eval` of a run and of a snapshot, `capture`, training on what it wrote, and heads."""
    run, cache, heads = folder / "run", folder / "cache", folder / "heads"
    must("train", "--config", settings(folder, "topk, auxk", run))
    found = {}
    for case, options in {"eval": [], "eval of a snapshot": ["--snapshot", 3000]}.items():
        must("eval", run, "--tokens", 1000, "--spliced_tokens", 500, "--device", "cpu", *options)
        found[case] = _evaluated(run)
    text = [
        "--model", folder.parent / "model", "--data", folder.parent / "text.txt",
        "--document_separator", "\n", "--context_length", 32, "--model_rows", 8, "--device", "cpu",
        "--heldout_fraction", 0.2,
    ]  # fmt: skip
    must("capture", *text, "--out", cache, "--tokens", 3000, "--shard_tokens", 700)
    found["capture"] = tensors(cache)
    captured = settings(
        folder, "topk, auxk", folder / "again", activations=str(cache), model="", data=""
    )
    must("train", "--config", captured)
    found["training on a capture"] = trained(folder / "again")
    if command("capture", "--attention", *text, "--out", heads, "--tokens", 600):
        must("heads", *text, "--out", heads, "--tokens", 600)
    found["heads"] = dict(_heads(heads))
    return found


def _evaluated(run: Path) -> Figures:
    """eval.jsonl, or eval.json: {"hook point: figure": value}."""
    if (run / "eval.jsonl").exists():
        layers = {line.pop("hook_point"): line for line in lines(run / "eval.jsonl")}
        for line in layers.values():  # eval.json has these once
            for name in ("tokens", "predicted_tokens", "density_edges"):
                del line[name]
    else:
        layers = json.loads((run / "eval.json").read_text())["layers"]
    return {
        f"{layer}: {name}": value for layer, line in layers.items() for name, value in line.items()
    }


def _heads(out: Path) -> Iterator[tuple[str, Any]]:
    """heads.jsonl, or heads.json: a (text or null, layer, score, head) and its value each."""
    if (out / "heads.jsonl").exists():
        yield from _head_rows(lines(out / "heads.jsonl"))
        return
    found = json.loads((out / "heads.json").read_text())
    for part, layers in {"text": found["text"], **found["repeated"]}.items():
        for layer, scores in layers.items():
            for score, values in scores.items():
                for head, value in enumerate(values):
                    yield f"{part}, {layer}, head {head}: {score}", value


def _head_rows(rows: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The same of rows, which say a kv group's and a layer's value for each of their heads."""
    keys = ("model", "tokens", "part", "layer", "head", "kv_head")
    for row in rows:
        for column, value in row.items():
            if row["part"] == "linear" or column in keys:
                continue
            score, null = re.fullmatch(r"(\w+?)(?:_(z_\w+))?", column).groups()  # type: ignore[union-attr]
            part = "text" if row["part"] == "text" else null or "raw"
            head = {"within": row["kv_head"], "between": 0}.get(score, row["head"])
            yield f"{part}, {row['layer']}, head {head}: {score}", value


def triton(folder: Path) -> dict[str, Figures]:
    """Steps on Triton kernels, in its interpreter: weights, moments and figures, after each step."""
    from trustbench.sae import SAE, SAEConfig

    trainer = named(
        "trustbench.steps.triton:TritonStep",
        "trustbench.steps.triton:TritonStep",
        "trustbench.train.device_step:DeviceTrainer",
    )
    adam = named(
        "trustbench.steps.base:AdamOptions",
        "trustbench.steps.fused:AdamOptions",
        "trustbench.train.step:AdamOptions",
    )
    found = {}
    for case, (fields, options) in STEPS.items():
        sparsity = {"l1_coefficient": 0.2} if fields["activation"] == "relu" else {"k": 4}
        torch.manual_seed(0)
        sae = SAE(SAEConfig(d_in=24, d_sae=48, normalize="expected_norm", **sparsity, **fields))
        sae.input_scale.fill_(0.8)
        options = dict(options)
        dtypes = {
            "compute_dtype": torch.bfloat16 if options.pop("dtype", "") else torch.float32,
            "moment_dtype": torch.bfloat16 if options.pop("moments", "") else torch.float32,
        }
        clipped = adam(clip_norm=options.pop("clip_norm", 0.0))
        step = trainer(sae, clipped, dead_after_tokens=17, **dtypes, **options)
        figures: Figures = {}
        penalty = (
            "penalty_scale" if "penalty_scale" in signature(step.step).parameters else "sparsity"
        )
        for number in range(1, 4):
            x = torch.randn(17, 6) @ torch.randn(6, 24) + 0.1 * torch.randn(17, 24) + 0.5
            seen = step.step(x, 1e-2, **{penalty: 0.5}, measure=number != 2)
            if seen is not None:
                figures |= {f"step {number}: {n}": float(v) for n, v in seen._asdict().items()}
            state = step.state_dict()
            figures |= {f"step {number}: {name}": state[name].clone() for name in state}
        if fields.get("auxk") and not figures["step 3: auxk"]:
            raise SystemExit(f"{case}: AuxK never took part, so this shows nothing of it")
        found[case] = figures
    _must_differ(found)
    return found


def counts(folder: Path) -> dict[str, Figures]:
    """Instructions that the C++ kernels execute, by the regression guard of that checkout."""
    return {"instructions": named("benchmarks.guard.native:count")()}


if __name__ == "__main__":
    part, target = sys.argv[1], Path(sys.argv[2])
    if part != "counts" and Path(trustbench.__file__).parents[2] != target.parent:
        raise SystemExit(f"{trustbench.__file__} is not what was to be compared")
    torch.set_num_threads(1)
    noted = globals()[part](target)
    if os.environ.get("RANK", "0") == "0":
        torch.save(noted, target / "noted.pt")
