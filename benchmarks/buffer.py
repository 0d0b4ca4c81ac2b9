"""Activations into a shuffling buffer and out again, against memcpy and the peers' buffers.

    python benchmarks/buffer.py --peers-python PATH

Two tables: time, and how well the order that comes out is mixed. Every contender holds the same pool,
takes the same tokens of all layers and hands out batches of the same size; what is timed is the
buffer alone, the activations being there already. memcpy is torch's copy of the same bytes, once for
putting and once for taking, with the same threads. Each contender runs in a process of its own, one
after the other, several times round; see benchmarks/README.md for the peers' environment.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Acts = dict[str, Tensor]
Source = Iterator[Acts]  # endless, n tokens at a time


def memcpy(source: Source, n: int, pool: int) -> Iterator[Acts]:
    """Each byte copied twice, in order: into the pool and out of it."""
    acts = next(source)
    store = {name: a.new_zeros(pool, a.shape[1]) for name, a in acts.items()}
    out = {name: torch.zeros_like(a) for name, a in acts.items()}
    at = 0
    while True:
        for name, a in acts.items():
            store[name][at : at + n].copy_(a)
            out[name].copy_(store[name][at : at + n])
        at = (at + n) % (pool - n + 1) // n * n
        yield out
        acts = next(source)


def trustbench(source: Source, n: int, pool: int, **options: Any) -> Iterator[Acts]:
    """ActivationBuffer, kept full."""
    from trustbench.buffer import ActivationBuffer

    acts = next(source)
    widths = {name: a.shape[1] for name, a in acts.items()}
    dtype = next(iter(acts.values())).dtype
    buffer = ActivationBuffer(widths, pool, **{"dtype": dtype} | options)
    batch = None
    while True:
        while buffer.space >= n:
            buffer.put(acts)
            acts = next(source)
        batch = buffer.take(n, batch)
        yield batch


def fp8(source: Source, n: int, pool: int) -> Iterator[Acts]:
    """The same, stored as MXFP8."""
    return trustbench(source, n, pool, dtype=torch.float8_e4m3fn)


def host_tier(source: Source, n: int, pool: int) -> Iterator[Acts]:
    """As many tokens again in host memory below the pool; every token goes there once on average."""
    from trustbench.buffer import Spill

    # A ninth more for what segments are rounded up to.
    size = sum(a[0].nbytes for a in next(source).values()) * pool
    return trustbench(source, n, pool, spill=Spill(host_bytes=size + size // 9 + 2**16))


def disk_tier(source: Source, n: int, pool: int) -> Iterator[Acts]:
    """As many tokens again in files."""
    from trustbench.buffer import Spill

    size = sum(a[0].nbytes for a in next(source).values()) * pool
    directory = tempfile.mkdtemp(prefix="trustbench-spill-", dir=SPILL)
    bound = 2 * (size + size // 9 + 2**16)
    try:
        yield from trustbench(source, n, pool, spill=Spill(disk_bytes=bound, directory=directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def saelens(source: Source, n: int, pool: int) -> Iterator[Acts]:
    """sae_lens/training/mixing_buffer.py, for several hook points."""
    from sae_lens.training.mixing_buffer import multi_hook_concat_split_iter

    acts = next(source)
    for batch in multi_hook_concat_split_iter(pool, n, source, list(acts)):
        # What training reads is contiguous.
        yield {name: rows.contiguous() for name, rows in batch.items()}


def dictionary_learning(source: Source, n: int, pool: int) -> Iterator[Acts]:
    """dictionary_learning/buffer.py, one a layer, on a stand-in for a model that has no forward."""
    from dictionary_learning.buffer import ActivationBuffer

    context = 128
    first = next(source)
    mask = SimpleNamespace(value=((), {"attention_mask": torch.ones(n // context, context)}))
    waiting: dict[str, list[Tensor]] = {name: [a] for name, a in first.items()}

    def following(name: str) -> Any:
        """What a layer's hook would give next; each buffer refills in its own time."""
        if not waiting[name]:
            for other, a in next(source).items():
                waiting[other].append(a)
        return SimpleNamespace(value=waiting[name].pop(0).view(n // context, context, -1))

    def forever() -> Iterator[str]:
        while True:
            yield ""

    buffers = {}
    for name, a in first.items():
        model = SimpleNamespace(
            dtype=a.dtype,
            trace=lambda *_, **__: contextlib.nullcontext(),
            inputs=SimpleNamespace(save=lambda: mask),
        )
        output = SimpleNamespace(save=lambda name=name: following(name), stop=lambda: None)
        buffers[name] = ActivationBuffer(
            forever(),
            model,
            SimpleNamespace(output=output),
            d_submodule=a.shape[1],
            n_ctxs=pool // context,
            ctx_len=context,
            refresh_batch_size=n // context,
            out_batch_size=n,
        )
    while True:
        yield {name: next(buffer) for name, buffer in buffers.items()}


def shuffled_blocks(source: Source, n: int, pool: int) -> Iterator[Acts]:
    """The best that blocks can do: a full shuffle of one pool's tokens after the other."""
    while True:
        acts = [next(source) for _ in range(pool // n)]
        order = torch.randperm(pool)
        whole = {name: torch.cat([a[name] for a in acts])[order] for name in acts[0]}
        for start in range(0, pool, n):
            yield {name: rows[start : start + n] for name, rows in whole.items()}


CONTENDERS: dict[str, Callable[[Source, int, int], Iterator[Acts]]] = {
    "memcpy": memcpy,
    "trustbench": trustbench,
    "trustbench, MXFP8": fp8,
    "trustbench, host tier": host_tier,
    "trustbench, disk tier": disk_tier,
    "SAELens": saelens,
    "dictionary_learning": dictionary_learning,
    "shuffled blocks": shuffled_blocks,
}
PEERS = ("SAELens", "dictionary_learning")
TIMED = tuple(name for name in CONTENDERS if name != "shuffled blocks")
MIXED = ("trustbench", "trustbench, host tier", *PEERS, "shuffled blocks")
SPILL = None  # where the disk tier's files go: the system's temporary directory


def measure(name: str, layers: int, d: int, tokens: int, pool: int, steps: int) -> float:
    """Seconds a batch of `tokens`, over `steps` of them, after as many as fill the pool."""
    acts = {f"layer {i}": torch.randn(tokens, d).bfloat16() for i in range(layers)}
    run = CONTENDERS[name](itertools.repeat(acts), tokens, pool)
    for _ in range(2 * pool // tokens):
        next(run)
    start = time.perf_counter()
    for _ in range(steps):
        next(run)
    return (time.perf_counter() - start) / steps


def disk_rates(size: int = 2**30) -> dict[str, float]:
    """Bytes a second of one file, written and read in pieces of 32 MiB past the page cache."""
    piece = mmap.mmap(-1, 2**25)
    piece.write(random.Random(0).randbytes(2**25))
    handle, name = tempfile.mkstemp(prefix="trustbench-", dir=SPILL)
    os.close(handle)
    rates = {}
    for what, flags in (("write", os.O_WRONLY), ("read", os.O_RDONLY)):
        try:
            file = os.open(name, flags | os.O_DIRECT)
        except OSError:
            file = os.open(name, flags)
        start = time.perf_counter()
        for at in range(0, size, 2**25):
            if what == "write":
                os.pwrite(file, piece, at)
            else:
                os.preadv(file, [piece], at)
        if what == "write":
            os.fsync(file)
        rates[what] = size / (time.perf_counter() - start)
        os.close(file)
    Path(name).unlink()
    return rates


def mixing(name: str, tokens: int, pool: int, document: int) -> dict[str, float]:
    """How the order that comes out differs from the text's, in the steady state.

    same_document: pairs of one document in a batch, of all its pairs. distance: median of tokens
    between neighbours in a batch, in the text's order. spread: standard deviation of how many
    batches a token comes early or late.
    """

    def numbered() -> Source:
        for start in itertools.count(0, tokens):
            yield {"layer": torch.arange(start, start + tokens, dtype=torch.float32)[:, None]}

    run, rounds = CONTENDERS[name](numbered(), tokens, pool), 32 * pool // tokens
    same, distances, delays = [], [], []
    for i in range(rounds):
        batch = next(run)["layer"].flatten().long()
        if i < rounds // 2:  # the pool is filling, or its first tokens are still in it
            continue
        counts = torch.bincount(batch // document).double()
        same.append(float((counts * (counts - 1)).sum() / (tokens * (tokens - 1))))
        distances.append(batch.diff().abs())
        delays.append(i - batch / tokens)
    return {
        "same_document": statistics.mean(same),
        "distance": float(torch.cat(distances).median()),
        "spread": float(torch.cat(delays).std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", default=sys.executable, help="python that has the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--d", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--pool", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=8, help="batches of one timing")
    parser.add_argument("--document", type=int, default=512, help="tokens a document, for mixing")
    parser.add_argument("--contender", help="time one, in this process")
    parser.add_argument("--mixing", help="measure the mixing of one, in this process")
    args = parser.parse_args()
    if args.contender:
        shape = (args.layers, args.d, args.tokens, args.pool, args.steps)
        print(json.dumps(measure(args.contender, *shape)))
        return
    if args.mixing:
        print(json.dumps(mixing(args.mixing, args.tokens, args.pool, args.document)))
        return

    from harness import machine, write

    names = ("layers", "d", "tokens", "pool", "steps", "document")
    flags = [f"--{name}={getattr(args, name)}" for name in names]
    absent: dict[str, str] = {}

    def ask(what: str, name: str) -> Any:
        """A contender's figures from a process of its own; None, with the reason, without it."""
        python = args.peers_python if name in PEERS else sys.executable
        command = [python, str(Path(__file__)), what, name, *flags]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            absent[name] = run.stderr.strip().splitlines()[-1]
            return None
        return json.loads(run.stdout.splitlines()[-1])

    seconds: dict[str, list[float]] = {name: [] for name in TIMED}
    for _ in range(args.rounds):
        for name in TIMED:
            if (found := ask("--contender", name)) is not None:
                seconds[name].append(found)
    mixed = {name: ask("--mixing", name) for name in MIXED}
    here, disk = machine(), disk_rates()
    median = {name: statistics.median(times) for name, times in seconds.items() if times}
    text = _tables(args, here, median, mixed, absent, disk)
    figures = {"seconds": seconds, "median": median, "mixing": mixed, "absent": absent, "disk": disk}
    write("cpu_buffer", {"machine": here, "shape": vars(args), **figures}, text)


def _tables(
    args: argparse.Namespace,
    here: dict[str, Any],
    median: dict[str, float],
    mixed: dict[str, Any],
    absent: dict[str, str],
    disk: dict[str, float],
) -> str:
    bytes_moved = 2 * args.layers * args.tokens * args.d * 2  # put and taken
    lines = [
        f"Put and take of {args.tokens} tokens of {args.layers} layers, d = {args.d}, bf16, a pool of"
        f" {args.pool} tokens; median of {args.rounds} processes each.",
        f"{here['cpu']}, {here['threads']} threads, torch {here['torch']}, commit {here['commit']},"
        f" {here['date']}.",
        "",
        "| | ms a batch | GB/s put and taken | of memcpy | trustbench is |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in TIMED:
        if name not in median:
            lines.append(f"| {name} | absent: {absent[name]} | | | |")
            continue
        t = median[name]
        lines.append(
            f"| {name} | {1e3 * t:.1f} | {bytes_moved / t / 1e9:.1f} | {median['memcpy'] / t:.0%} |"
            f" {t / median['trustbench']:.2f} × |"
        )
    # Of a batch, what is stored goes down once and comes back once.
    half, spent = bytes_moved / 2, median["trustbench, disk tier"]
    lines += [
        "",
        "With a tier below it, tokens go down and come back once on average. The disk writes"
        f" {disk['write'] / 1e9:.2f} GB/s and reads {disk['read'] / 1e9:.2f} GB/s, one after the"
        f" other; with the disk tier {half / spent / 1e9:.2f} GB/s are written while as much is"
        " read.",
        "",
        f"How well the order is mixed, with the same pool and documents of {args.document} tokens (a"
        " batch should hold few pairs of one document, and its neighbours be far apart in the text):",
        "",
        "| | pairs of one document in a batch | median distance of neighbours, tokens | spread of a"
        " token's delay, batches |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, figure in mixed.items():
        if figure is None:
            lines.append(f"| {name} | absent: {absent[name]} | | |")
            continue
        lines.append(
            f"| {name} | {figure['same_document']:.2%} | {figure['distance']:.0f} |"
            f" {figure['spread']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
