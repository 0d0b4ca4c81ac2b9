"""The same fvu as the CPU's fp32 path at equal steps, on the demo model."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from trustbench import ops
from trustbench.sae import SAEConfig
from trustbench.studies.demo.run import demo_config
from trustbench.training import train


def run(device: torch.device, rehearse: bool) -> dict[str, Any]:
    """fvu of every layer at the end of equal short runs: on the CPU in fp32, and on `device`."""
    fvu = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, where in (("cpu", "cpu"), ("device", str(device))):
            config = demo_config(Path(directory) / name, tokens=192 if rehearse else 200_000)
            changes: dict[str, Any] = {"device": where, "log_every": 1}
            if name == "cpu":
                changes |= {"matmul_dtype": "fp32", "model_dtype": "fp32", "buffer_dtype": "fp32"}
            if rehearse:
                changes |= {"sae": SAEConfig(d_sae=16, k=4), "batch_size": 64, "layers": [2]}
                changes |= {"context_length": 16, "model_rows": 4, "buffer_tokens": 256}
            with ops.use("auto" if name == "cpu" else "triton"):
                train(dataclasses.replace(config, **changes), progress=False)
            lines = (Path(config.out) / "metrics.jsonl").read_text().splitlines()
            last = [json.loads(line) for line in lines]
            last = [line for line in last if line["tokens"] == last[-1]["tokens"]]
            fvu[name] = {line["hook_point"]: line["fvu"] for line in last}
    pairs = zip(fvu["cpu"].values(), fvu["device"].values(), strict=True)
    return fvu | {"worst ratio": max(theirs / mine for mine, theirs in pairs)}
