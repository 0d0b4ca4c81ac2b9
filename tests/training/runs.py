"""Runs in other processes, and what they leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from trustbench.sae import load_saes


def weights(directory):
    saes = load_saes(directory)
    return {f"{n}.{k}": v for n, sae in saes.items() for k, v in sae.state_dict().items()}


def metric_lines(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


RUNNER = """
import json, sys, torch
torch.set_num_threads(1)
import trustbench as tb
tb.train(tb.TrainConfig.from_dict(json.loads(sys.argv[1])), progress=False)
"""


def start(config):
    """A run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, json.dumps(config.to_dict())], stderr=subprocess.PIPE
    )


def wait_for_tokens(run, tokens, process):
    """Until metrics.jsonl shows that many tokens (or the process is done)."""
    while process.poll() is None:
        if (run / "metrics.jsonl").exists():
            lines = (run / "metrics.jsonl").read_text().splitlines()
            if len(lines) > 1 and json.loads(lines[-2])["tokens"] >= tokens:
                return
        time.sleep(0.01)
