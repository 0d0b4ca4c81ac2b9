"""Activations into a shuffling buffer and out again, by us and by each peer.

Every contender holds the same pool, takes the same tokens of all layers and hands out batches of the
same size; the activations are there already. What a library needs beside its buffer is a stand-in.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.base import Contender, version_of

Acts = dict[str, Tensor]
Source = Iterator[Acts]  # endless, n tokens at a time
_DOCUMENT = 512  # tokens a document, for mixing
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


def pinned_copies(source: Source, n: int, pool: int) -> Iterator[Acts]:
    """What a GPU's link can do: each byte to page-locked memory and back, both ways at once."""
    acts = next(source)
    rows = torch.cat([a.flatten() for a in acts.values()])
    down, up = (torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True) for _ in range(2))
    back, streams = torch.empty_like(rows), [torch.cuda.Stream() for _ in range(2)]
    while True:
        for stream, to, given in zip(streams, (down, back), (rows, up), strict=True):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                to.copy_(given, non_blocking=True)
        for stream in streams:
            torch.cuda.current_stream().wait_stream(stream)
        yield acts


def trustbench(source: Source, n: int, pool: int, **options: Any) -> Iterator[Acts]:
    """ActivationBuffer, kept full."""
    from trustbench.buffer import ActivationBuffer

    acts = next(source)
    widths = {name: a.shape[1] for name, a in acts.items()}
    like = next(iter(acts.values()))
    options = {"dtype": like.dtype, "device": like.device} | options
    buffer, batch = ActivationBuffer(widths, pool, **options), None
    while True:
        while buffer.space >= n:
            buffer.put(acts)
            acts = next(source)
        batch = buffer.take(n, batch)
        yield batch


def tier(source: Source, n: int, pool: int, *, disk: bool) -> Iterator[Acts]:
    """As many tokens again below the pool; every token goes there once on average."""
    from trustbench.buffer import Spill

    size = sum(a[0].nbytes for a in next(source).values()) * pool
    size += size // 9 + 2**16  # what segments are rounded up to
    with tempfile.TemporaryDirectory(prefix="trustbench-spill-") as folder:
        spill = Spill(disk_bytes=2 * size, directory=folder) if disk else Spill(host_bytes=size)
        yield from trustbench(source, n, pool, spill=spill)


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

    buffers = {}
    for name, a in first.items():
        model = SimpleNamespace(
            dtype=a.dtype,
            trace=lambda *_, **__: contextlib.nullcontext(),
            inputs=SimpleNamespace(save=lambda: mask),
        )
        output = SimpleNamespace(save=lambda name=name: following(name), stop=lambda: None)
        buffers[name] = ActivationBuffer(
            itertools.repeat(""), model, SimpleNamespace(output=output), d_submodule=a.shape[1],
            n_ctxs=pool // context, ctx_len=context, refresh_batch_size=n // context,
            out_batch_size=n,
        )  # fmt: skip
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


def repeated(layers: int, d: int, tokens: int, device: str) -> Source:
    """The same activations again and again: what is timed is the buffer alone."""
    return itertools.repeat(
        {f"layer {i}": torch.randn(tokens, d, device=device).bfloat16() for i in range(layers)}
    )


def numbered(tokens: int) -> Source:
    """Every token's activation is its place in the text."""
    for start in itertools.count(0, tokens):
        yield {"layer": torch.arange(start, start + tokens, dtype=torch.float32)[:, None]}


def contender(
    make: Callable[..., Iterator[Acts]], distribution: str = "torch", *, mixes: bool = False
) -> type[Contender]:
    """One of the buffers above, filled; `run` takes a batch and puts what there is room for.

    mixes: its order of tokens is looked at.
    """

    class Buffer(Contender):
        repeats = 8  # some refill only now and then

        def __init__(self, layers: int, d: int, tokens: int, pool: int, device: str = "cpu") -> None:
            self.tokens, self.pool = tokens, pool
            self.batches = make(repeated(layers, d, tokens, device), tokens, pool)
            for _ in range(2 * pool // tokens):
                next(self.batches)
            self.version = version_of(distribution)

        def run(self, _: Any) -> None:
            next(self.batches)

        def more(self) -> dict[str, float]:
            """How the order that comes out differs from the text's, in the steady state.

            same_document: pairs of one document in a batch, of all its pairs. distance: median of
            tokens between neighbours in a batch, in the text's order. spread: standard deviation of
            how many batches a token comes early or late.
            """
            if not mixes:
                return {}
            tokens, rounds = self.tokens, 32 * self.pool // self.tokens
            batches = make(numbered(tokens), tokens, self.pool)
            same, distances, delays = [], [], []
            for i in range(rounds):
                batch = next(batches)["layer"].flatten().long()
                if i < rounds // 2:  # the pool is filling, or its first tokens are still in it
                    continue
                counts = torch.bincount(batch // _DOCUMENT).double()
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
    "trustbench": contender(trustbench, "trustbench", mixes=True),
    "trustbench, MXFP8": contender(partial(trustbench, dtype=torch.float8_e4m3fn), "trustbench"),
    "trustbench, host tier": contender(partial(tier, disk=False), "trustbench", mixes=True),
    "trustbench, disk tier": contender(partial(tier, disk=True), "trustbench"),
    "SAELens": contender(saelens, "sae-lens", mixes=True),
    "dictionary_learning": contender(dictionary_learning, "dictionary-learning", mixes=True),
    "shuffled blocks": contender(shuffled_blocks, mixes=True),
    "memcpy": contender(memcpy),
    "page-locked copies": contender(pinned_copies),
}
