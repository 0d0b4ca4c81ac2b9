"""Attention capture against torch's own attention and against full matrices, in time and memory.

    python benchmarks/attention.py

Three contenders in one process, interleaved: attention_capture; scaled_dot_product_attention alone,
which captures nothing; and eager attention with the same statistics from the full matrices. Peak
memory is of a process each, above its inputs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Inputs = tuple[Tensor, Tensor, Tensor]


def inputs(T: int, D: int, H: int, H_kv: int) -> Inputs:
    """q, k, v of one row."""
    torch.manual_seed(0)
    return torch.randn(1, H, T, D), torch.randn(1, H_kv, T, D), torch.randn(1, H_kv, T, D)


def capture(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The op, with all its statistics."""
    from trustbench.ops import attention_capture

    return attention_capture(q, k, v).out


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's attention alone."""
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full matrices, and the statistics as one would write them."""
    T, D, group = q.shape[2], q.shape[3], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    at = torch.arange(T)
    away = at[:, None] - at
    s = (q @ k.transpose(2, 3)) * D**-0.5
    s = s.masked_fill(away < 0, -torch.inf)
    s.logsumexp(3)
    p = s.softmax(3)
    torch.special.entr(p).sum(3)
    (p * away).sum(3)
    (p * ((away >= 0) & (away < 8))).sum(3)
    p.max(3)
    p[..., 0].clone(), p.diagonal(0, 2, 3).clone(), p.diagonal(-1, 2, 3).clone()
    return p @ v


CONTENDERS: dict[str, Callable[..., Tensor]] = {
    "attention_capture": capture,
    "SDPA alone": sdpa,
    "eager and full matrices": eager,
}


def peak(name: str, shape: tuple[int, int, int, int]) -> int:
    """Bytes above the inputs, the output included."""

    def memory(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    contender, given = CONTENDERS[name], inputs(*shape)
    contender(*(t[:, :, :64].contiguous() for t in given))  # what libraries need once
    bare = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    contender(*given)
    return memory("VmHWM") - bare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv_heads", type=int, default=4)
    parser.add_argument("--shapes", default="1024x64,4096x64,4096x128", help="T x D, by commas")
    parser.add_argument("--peak", help="measure the memory of one, in this process")
    args = parser.parse_args()
    shapes = [tuple(map(int, s.split("x"))) for s in args.shapes.split(",")]
    if args.peak:
        print(peak(args.peak, (*shapes[0], args.heads, args.kv_heads)))
        return

    from harness import machine, write

    results = []
    for T, D in shapes:
        given = inputs(T, D, args.heads, args.kv_heads)
        times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for round_ in range(args.rounds + 1):
            for name, contender in CONTENDERS.items():
                start = time.perf_counter()
                contender(*given)
                if round_:  # the first is to warm up
                    times[name].append(time.perf_counter() - start)
        memory = {
            name: int(
                subprocess.run(
                    [sys.executable, __file__, "--peak", name, "--shapes", f"{T}x{D}",
                     "--heads", str(args.heads), "--kv_heads", str(args.kv_heads)],
                    capture_output=True, text=True, check=True,
                ).stdout
            )
            for name in CONTENDERS
        }  # fmt: skip
        median = {name: statistics.median(found) for name, found in times.items()}
        results.append({"T": T, "D": D, "seconds": times, "median": median, "peak": memory})
        print(json.dumps(results[-1]["median"]), flush=True)
    here = machine()
    lines = [
        f"One row, {args.heads} query heads on {args.kv_heads} kv heads, causal, fp32; medians of"
        f" {args.rounds} interleaved rounds. attention_capture returns lse, entropy, look-back, the"
        " largest probability and its place, and the mass on the first, own, previous and last 8"
        " positions.",
        f"{here['cpu']}, {here['threads']} threads, torch {here['torch']}, commit {here['commit']},"
        f" {here['date']}.",
        "",
        "| T | D | | ms | of SDPA's time | peak memory above the inputs, MB |",
        "| ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for found in results:
        for name, seconds in found["median"].items():
            lines.append(
                f"| {found['T']} | {found['D']} | {name} | {1e3 * seconds:.0f} |"
                f" {seconds / found['median']['SDPA alone']:.2f} × |"
                f" {found['peak'][name] / 1e6:.0f} |"
            )
    write("cpu_attention", {"machine": here, "results": results}, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
