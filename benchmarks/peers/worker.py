"""Runs one contender in a process of its own; JSON lines on standard input and output.

{"do": "build", "job": ..., "contender": ..., "threads": ..., "options": {...}} -> {"version": ...}
{"do": "round"}                            -> {"seconds": ...}
{"do": "memory"}                           -> {"peak": bytes, "step": bytes}; ask for times before
{"do": "call", "method": ..., "with": {...}} -> {"answer": what the contender's method returns}

The job names the module beside this file that has its contenders. It may run in an environment
that has a peer and not trustbench, so it imports nothing but torch before it is asked to.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.heap import give_back, memory, trim


def build(ask: dict[str, Any]) -> tuple[Any, int]:
    """The contender, and the memory of the process before it was made."""
    torch.set_num_threads(ask["threads"])
    job = importlib.import_module(f"benchmarks.peers.{ask['job']}")
    kind, options = job.CONTENDERS[ask["contender"]], ask["options"]
    # Once small, so that what libraries need once is not counted as memory of the job.
    once = kind(**options | job.SMALL)
    once.run(once.prepare())
    del once
    gc.collect()
    trim()
    bare = memory("VmRSS")
    return kind(**options), bare


def main() -> None:
    output = sys.stdout
    sys.stdout = sys.stderr  # peers print
    contender: Any = None
    bare = 0
    for line in sys.stdin:
        ask = json.loads(line)
        answer: dict[str, Any] = {}
        if ask["do"] == "build":
            try:
                contender, bare = build(ask)
                answer = {"version": contender.version}
            except Exception as error:  # whatever a peer or its environment stumbles over
                answer = {"absent": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        elif ask["do"] == "round":
            seconds = 0.0
            for _ in range(contender.repeats):
                given = contender.prepare()
                start = time.perf_counter()
                contender.run(given)
                seconds += time.perf_counter() - start
            answer = {"seconds": seconds / contender.repeats}
        elif ask["do"] == "memory":
            given = contender.prepare()
            gc.collect()
            give_back()
            rest = memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # resets the highest
            contender.run(given)
            answer = {"peak": memory("VmHWM") - bare, "step": memory("VmHWM") - rest}
        elif ask["do"] == "call":
            answer = {"answer": getattr(contender, ask["method"])(**ask["with"])}
        print(json.dumps(answer), file=output, flush=True)


if __name__ == "__main__":
    main()
