"""Runs one contender in a process of its own; JSON lines on standard input and output.

{"do": "build", "contender": ..., "d": ..., "F": ..., "k": ..., "lr": ..., "steps": ..., "bf16": ...,
     "dead_after": ...}
{"do": "step", "N": ...}                 -> {"seconds": ...}
{"do": "memory", "N": ...}               -> {"peak": bytes, "step": bytes}
{"do": "train", "train": file, "test": file, "batch": ...}  -> {"fvu": ..., "never_active": ...}
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from contenders import CONTENDERS


def memory(key: str) -> int:
    """VmRSS (now) or VmHWM (highest since it was last reset) of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    output = sys.stdout
    sys.stdout = sys.stderr  # peers print
    contender = None
    bare = 0
    for line in sys.stdin:
        ask = json.loads(line)
        answer: dict[str, object] = {}
        if ask["do"] == "build":
            torch.set_num_threads(ask["threads"])
            kind = CONTENDERS[ask["contender"]]
            try:
                # Once small, so that imports are not counted as memory of the step.
                kind(8, 16, 2, 1e-4, 10, ask["bf16"]).step(torch.randn(4, 8))
                gc.collect()
                bare = memory("VmRSS")
                names = ("d", "F", "k", "lr", "steps", "bf16", "dead_after")
                contender = kind(*(ask[name] for name in names))
                answer = {"version": contender.version}
            except Exception as error:
                answer = {"absent": f"{type(error).__name__}: {error}"}
        elif ask["do"] == "step":
            x = torch.randn(ask["N"], contender.d)
            start = time.perf_counter()
            contender.step(x)
            answer = {"seconds": time.perf_counter() - start}
        elif ask["do"] == "memory":
            x = torch.randn(ask["N"], contender.d)
            gc.collect()
            rest = memory("VmRSS")
            reset_peak()
            contender.step(x)
            answer = {"peak": memory("VmHWM") - bare, "step": memory("VmHWM") - rest}
        elif ask["do"] == "train":
            train, test = (torch.load(ask[name]) for name in ("train", "test"))
            batch = ask["batch"]
            for at in range(0, len(train) - batch + 1, batch):
                contender.step(train[at : at + batch])
            error = 0.0
            fired = torch.zeros(contender.F, dtype=torch.long)
            for part in test.split(batch):
                x_hat, counts = contender.code(part)
                error += (part - x_hat).double().square().sum().item()
                fired += counts
            total = (test - test.mean(0)).double().square().sum().item()
            dead = (fired == 0).double().mean().item()
            answer = {"fvu": error / total, "never_active": dead}
        print(json.dumps(answer), file=output, flush=True)


if __name__ == "__main__":
    main()
