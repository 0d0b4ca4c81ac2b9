"""Training steps of one size in a process of its own: prints their seconds and the peak memory.

python -m benchmarks.scaling_worker '{"point": [N, d, F, k, layers], "rounds": 5, "threads": 2}'
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.peers.heap import memory
from benchmarks.scaling_fit import Point
from trustbench.ops import dispatch
from trustbench.sae import SAE, SAEConfig
from trustbench.steps.fused import LayerTrainer

_WARM = 2


def trainers(point: Point) -> list[LayerTrainer]:
    """One for every layer, with the matmul that `trustbench train` takes by itself."""
    made = []
    for _ in range(point.layers):
        sae = SAE(SAEConfig(d_in=point.d, d_sae=point.F, k=point.k))
        sae.matmul_dtype = torch.bfloat16 if dispatch.has_fast_bf16() else None
        made.append(LayerTrainer(sae))
    return made


def measure(point: Point, rounds: int) -> dict[str, object]:
    """Seconds of `rounds` warm steps of all layers, and the most bytes that they needed."""
    # Once small, so that what libraries need is not counted as memory of the step.
    trainers(Point(64, 8, 64, 4))[0].step(torch.randn(64, 8), 1e-4)
    gc.collect()
    bare = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    layers = trainers(point)
    batches = [torch.randn(point.N, point.d) for _ in layers]
    seconds = []
    for _ in range(_WARM + rounds):
        start = time.perf_counter()
        for trainer, batch in zip(layers, batches, strict=True):
            trainer.step(batch, 1e-4)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[_WARM:], "peak": memory("VmHWM") - bare}


if __name__ == "__main__":
    ask = json.loads(sys.argv[1])
    torch.set_num_threads(ask["threads"])
    print(json.dumps(measure(Point(*ask["point"]), ask["rounds"])))
