"""Activations into a shuffling buffer and out again, against memcpy and the peers' buffers.

    python benchmarks/buffer.py --peers-python PATH

Every contender holds the same pool, takes the same tokens of all layers and hands out batches of the
same size; what is timed is the buffer alone, the activations being there already. memcpy is torch's
copy of the same bytes, once for putting and once for taking, with the same threads. Each contender
runs in a process of its own, one after the other, several times round; see benchmarks/README.md for
the peers' environment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def memcpy(acts: dict[str, Tensor], pool: int) -> Iterator[int]:
    """Each byte copied twice, in order: into the pool and out of it."""
    n = len(next(iter(acts.values())))
    store = {name: a.new_zeros(pool, a.shape[1]) for name, a in acts.items()}
    out = {name: torch.zeros_like(a) for name, a in acts.items()}
    at = 0
    while True:
        for name, a in acts.items():
            store[name][at : at + n].copy_(a)
            out[name].copy_(store[name][at : at + n])
        at = (at + n) % (pool - n + 1) // n * n
        yield n


def trustbench(acts: dict[str, Tensor], pool: int) -> Iterator[int]:
    """ActivationBuffer, kept full."""
    from trustbench.buffer import ActivationBuffer

    n = len(next(iter(acts.values())))
    widths = {name: a.shape[1] for name, a in acts.items()}
    buffer = ActivationBuffer(widths, pool, dtype=next(iter(acts.values())).dtype)
    batch = None
    while True:
        while buffer.space >= n:
            buffer.put(acts)
        batch = buffer.take(n, batch)
        yield n


def saelens(acts: dict[str, Tensor], pool: int) -> Iterator[int]:
    """sae_lens/training/mixing_buffer.py, for several hook points."""
    from sae_lens.training.mixing_buffer import multi_hook_concat_split_iter

    n = len(next(iter(acts.values())))

    def endless() -> Iterator[dict[str, Tensor]]:
        while True:
            yield acts

    for batch in multi_hook_concat_split_iter(pool, n, endless(), list(acts)):
        for rows in batch.values():  # what training reads is contiguous
            rows.contiguous()
        yield n


def dictionary_learning(acts: dict[str, Tensor], pool: int) -> Iterator[int]:
    """dictionary_learning/buffer.py, one a layer, on a stand-in for a model that has no forward."""
    from dictionary_learning.buffer import ActivationBuffer

    n = len(next(iter(acts.values())))
    context = 128

    class Model:
        tokenizer = None
        inputs = SimpleNamespace(
            save=lambda: SimpleNamespace(
                value=((), {"attention_mask": torch.ones(n // context, context)})
            )
        )

        def __init__(self, dtype: torch.dtype) -> None:
            self.dtype = dtype

        def trace(self, *_: Any, **__: Any) -> Any:
            return contextlib.nullcontext()

    def forever() -> Iterator[str]:
        while True:
            yield ""

    buffers = []
    for a in acts.values():
        hidden = a.view(n // context, context, -1)
        output = SimpleNamespace(save=lambda h=hidden: SimpleNamespace(value=h), stop=lambda: None)
        buffers.append(
            ActivationBuffer(
                forever(),
                Model(a.dtype),
                SimpleNamespace(output=output),
                d_submodule=a.shape[1],
                n_ctxs=pool // context,
                ctx_len=context,
                refresh_batch_size=n // context,
                out_batch_size=n,
            )
        )
    while True:
        for buffer in buffers:
            next(buffer)
        yield n


CONTENDERS: dict[str, Callable[[dict[str, Tensor], int], Iterator[int]]] = {
    "memcpy": memcpy,
    "trustbench": trustbench,
    "SAELens": saelens,
    "dictionary_learning": dictionary_learning,
}


def measure(name: str, layers: int, d: int, tokens: int, pool: int, steps: int) -> float:
    """Seconds a batch of `tokens`, over `steps` of them, after as many as fill the pool."""
    acts = {f"layer {i}": torch.randn(tokens, d).bfloat16() for i in range(layers)}
    run = CONTENDERS[name](acts, pool)
    for _ in range(2 * pool // tokens):
        next(run)
    start, done = time.perf_counter(), 0
    for _ in range(steps):
        done += next(run)
    return (time.perf_counter() - start) * tokens / done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", default=sys.executable, help="python that has the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--d", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--pool", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=16, help="batches of one timing")
    parser.add_argument("--contender", help="run one, in this process")
    args = parser.parse_args()
    shape = (args.layers, args.d, args.tokens, args.pool, args.steps)
    if args.contender:
        print(json.dumps(measure(args.contender, *shape)))
        return

    from harness import machine, write

    ours = {"memcpy", "trustbench"}
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    absent = {}
    flags = [f"--{n}={getattr(args, n)}" for n in ("layers", "d", "tokens", "pool", "steps")]
    for _ in range(args.rounds):
        for name in CONTENDERS:
            python = sys.executable if name in ours else args.peers_python
            command = [python, str(Path(__file__)), "--contender", name, *flags]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                absent[name] = run.stderr.strip().splitlines()[-1]
            else:
                seconds[name].append(json.loads(run.stdout.splitlines()[-1]))
    here = machine()
    bytes_moved = 2 * args.layers * args.tokens * args.d * 2  # put and taken
    median = {name: statistics.median(times) for name, times in seconds.items() if times}
    lines = [
        f"Put and take of {args.tokens} tokens of {args.layers} layers, d = {args.d}, bf16, a pool of"
        f" {args.pool} tokens; median of {args.rounds} processes each.",
        f"{here['cpu']}, {here['threads']} threads, torch {here['torch']}, commit {here['commit']},"
        f" {here['date']}.",
        "",
        "| | ms a batch | GB/s put and taken | of memcpy | trustbench is |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in CONTENDERS:
        if name not in median:
            lines.append(f"| {name} | absent: {absent[name]} | | | |")
            continue
        t = median[name]
        lines.append(
            f"| {name} | {1e3 * t:.1f} | {bytes_moved / t / 1e9:.1f} | {median['memcpy'] / t:.0%} |"
            f" {t / median['trustbench']:.2f} × |"
        )
    figures = {"seconds": seconds, "absent": absent, "median": median}
    write("cpu_buffer", {"machine": here, "shape": vars(args), **figures}, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
