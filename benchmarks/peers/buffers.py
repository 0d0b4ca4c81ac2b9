"""Activations into a shuffling buffer and out again, by us and by each peer.

Every contender holds the same pool, takes the same tokens of all layers and hands out batches of the
same size; the activations are there already. What a library needs beside its buffer is a stand-in.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from base import Contender, version_of
from torch import Tensor

Acts = dict[str, Tensor]
Source = Iterator[Acts]  # endless, n tokens at a time
SMALL = {"layers": 1, "d": 8, "tokens": 256, "pool": 1024}


def memcpy(source: Source, n: int, pool: int) -> Iterator[Acts]:
    """Each byte copied twice, in order: into the pool, and out of it where no cache holds it."""
    acts = next(source)
    store = {name: a.new_zeros(pool, a.shape[1]) for name, a in acts.items()}
    out = {name: torch.zeros_like(a) for name, a in acts.items()}
    places = pool // n
    for i in itertools.count():
        put, take = i % places * n, (i + places // 2) % places * n
        for name, a in acts.items():
            store[name][put : put + n].copy_(a)
        for name, a in out.items():
            a.copy_(store[name][take : take + n])
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
    directory = tempfile.mkdtemp(prefix="trustbench-spill-")
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


def repeated(layers: int, d: int, tokens: int) -> Source:
    """The same activations again and again: what is timed is the buffer alone."""
    return itertools.repeat({f"layer {i}": torch.randn(tokens, d).bfloat16() for i in range(layers)})


def numbered(tokens: int) -> Source:
    """Every token's activation is its place in the text."""
    for start in itertools.count(0, tokens):
        yield {"layer": torch.arange(start, start + tokens, dtype=torch.float32)[:, None]}


def contender(make: Callable[..., Iterator[Acts]], distribution: str = "torch") -> type[Contender]:
    """One of the buffers above, filled; `run` takes a batch and puts what there is room for."""

    class Buffer(Contender):
        repeats = 8  # some refill only now and then

        def __init__(self, layers: int, d: int, tokens: int, pool: int) -> None:
            self.tokens, self.pool = tokens, pool
            self.batches = make(repeated(layers, d, tokens), tokens, pool)
            for _ in range(2 * pool // tokens):
                next(self.batches)
            self.version = version_of(distribution)

        def run(self, _: Any) -> None:
            next(self.batches)

        def mixing(self, document: int) -> dict[str, float]:
            """How the order that comes out differs from the text's, in the steady state.

            same_document: pairs of one document in a batch, of all its pairs. distance: median of
            tokens between neighbours in a batch, in the text's order. spread: standard deviation of
            how many batches a token comes early or late.
            """
            tokens, rounds = self.tokens, 32 * self.pool // self.tokens
            batches = make(numbered(tokens), tokens, self.pool)
            same, distances, delays = [], [], []
            for i in range(rounds):
                batch = next(batches)["layer"].flatten().long()
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

    return Buffer


CONTENDERS: dict[str, type[Contender]] = {
    "trustbench": contender(trustbench, "trustbench"),
    "trustbench, MXFP8": contender(fp8, "trustbench"),
    "trustbench, host tier": contender(host_tier, "trustbench"),
    "trustbench, disk tier": contender(disk_tier, "trustbench"),
    "SAELens": contender(saelens, "sae-lens"),
    "dictionary_learning": contender(dictionary_learning, "dictionary-learning"),
    "shuffled blocks": contender(shuffled_blocks),
    "memcpy": contender(memcpy),
}
