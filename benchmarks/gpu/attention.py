"""Attention capture on a GPU: right, against others, and at a length that no matrix allows."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import contenders
from benchmarks.gpu.clock import Clock
from trustbench import ops

SHAPES = ((4096, 64), (4096, 128), (16384, 64), (16384, 128))  # T, D
_HEADS, _KV_HEADS, _LONG = 16, 4, 131072
_MOST_PROBABILITIES = 2**29  # of a full matrix: eager keeps a dozen such, 2 GB each


def _inputs(T: int, D: int, device: torch.device, B: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(B, _HEADS, T, D, device=device).bfloat16()
    k, v = (torch.randn(B, _KV_HEADS, T, D, device=device).bfloat16() for _ in range(2))
    return q, k, v


def checks(device: torch.device, rehearse: bool) -> dict[str, str]:
    """Output and statistics against the reference in fp64 on the device."""
    outcomes = {}
    for T, D in ((48, 16),) if rehearse else ((777, 64), (1500, 128), (300, 80)):
        qkv = _inputs(T, D, device, B=2)
        segments = torch.arange(T, device=device).div(T // 3, rounding_mode="floor").int()
        cases: dict[str, dict[str, Any]] = {
            "causal": {"top": 4},
            "window": {"window": T // 5, "top": 1},
            "segments, sinks, cap": {
                "segments": segments.expand(2, T).contiguous(), "softcap": 5.0,
                "sinks": torch.randn(_HEADS, device=device),
            },
        }  # fmt: skip
        for name, options in cases.items():
            found = ops.attention_capture(*qkv, **options)
            with ops.use("reference"):
                exact = ops.attention_capture(*(t.double() for t in qkv), **options)
            worst = {}
            for field in ops.Attention._fields:
                mine, wanted = getattr(found, field).double(), getattr(exact, field).double()
                if field == "top_index":
                    continue
                scale = wanted.abs().max().clamp_min(1e-3) if wanted.numel() else 1.0
                worst[field] = float(((mine - wanted).abs() / scale).max()) if mine.numel() else 0.0
            limit = {"out": 2e-2}
            wrong = [f"{n} {e:.1e}" for n, e in worst.items() if not e <= limit.get(n, 2e-4)]
            outcomes[f"attention T={T} D={D}, {name}"] = f"WRONG: {wrong}" if wrong else "ok"
    return outcomes


def run(clock: Clock, rehearse: bool) -> dict[str, Any]:
    """Seconds of capture, of full matrices where they fit, and of torch's attention alone; peak
    memory at 131,072 tokens."""
    found: dict[str, Any] = {}
    for T, D in ((32, 16),) if rehearse else SHAPES:
        for name, kind in contenders.of("attention").items():
            if T * T * _HEADS > _MOST_PROBABILITIES and name.startswith("eager"):
                continue
            options = {"device": clock.device.type, "dtype": torch.bfloat16}
            try:
                made = kind(T, D, _HEADS, _KV_HEADS, **options)
                taken = clock.seconds(partial(made.run, None), rounds=11)
            except Exception as error:  # ours are worth having without the others
                if name == "trustbench":
                    raise
                taken = f"failed ({type(error).__name__})"
            found[f"T={T} D={D}, {name}"] = taken
        top = partial(ops.attention_capture, *_inputs(T, D, clock.device), top=8)
        found[f"T={T} D={D}, trustbench, top 8"] = clock.seconds(top, rounds=11)
    if clock.on_gpu:
        q, k, v = _inputs(_LONG, 64, clock.device)
        torch.cuda.reset_peak_memory_stats(clock.device)
        bare = torch.cuda.memory_allocated(clock.device)
        ops.attention_capture(q, k, v)
        torch.cuda.synchronize(clock.device)
        found["peak bytes at T=131072"] = torch.cuda.max_memory_allocated(clock.device) - bare
    return found
