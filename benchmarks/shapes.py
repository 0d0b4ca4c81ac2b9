"""The one table of shapes: what every case is measured at, by the time there is."""

from __future__ import annotations

from typing import NamedTuple

from trustbench.ops.spec import BENCHMARK_SHAPES, Shape


class Buffer(NamedTuple):
    """A shuffling buffer: so many tokens in the pool, so many a batch, of all layers, in bf16."""

    layers: int
    d: int
    tokens: int
    pool: int


class Attention(NamedTuple):
    """One row of T causal tokens, heads of width D."""

    T: int
    D: int
    heads: int
    kv_heads: int


class Model(NamedTuple):
    """A GPT-NeoX on one row of T tokens."""

    T: int
    layers: int
    d: int
    heads: int


class Quality(NamedTuple):
    """Training on one layer of the demo model, at each of a small grid of learning rates."""

    layer: int
    tokens: int
    test_tokens: int
    d_sae: int
    k: int
    batch: int
    dead_after: int  # tokens, for AuxK
    points: int  # of the curves
    rates: tuple[float, ...]


class Scale(NamedTuple):
    """Every subject's cases, and how many rounds each is measured."""

    rounds: int
    ops: tuple[Shape, ...]
    step: tuple[Shape, ...]
    buffer: tuple[Buffer, ...]
    attention: tuple[Attention, ...]
    capture: tuple[Model, ...]
    quality: tuple[Quality, ...]


SCALES = {
    # About 3 minutes on 2 cores.
    "quick": Scale(
        3,
        ops=(Shape(1024, 512, 8192, 32),),
        step=(Shape(1024, 512, 8192, 32),),
        buffer=(Buffer(6, 512, 2048, 8192),),
        attention=(Attention(1024, 64, 16, 4),),
        capture=(Model(1024, 4, 512, 8),),
        quality=(Quality(3, 40_960, 8_192, 2048, 32, 1024, 10_000, 2, (3e-3, 6e-3)),),
    ),
    # About 17 minutes: what the README's figures are from.
    "full": Scale(
        9,
        ops=BENCHMARK_SHAPES,
        step=BENCHMARK_SHAPES[:1],
        buffer=(Buffer(24, 1024, 2048, 16384),),
        attention=(Attention(4096, 64, 16, 4), Attention(4096, 128, 16, 4)),
        capture=(Model(2048, 6, 512, 8),),
        quality=(Quality(3, 163_840, 20_000, 4096, 32, 2048, 20_000, 5, (3e-3, 4e-3, 6e-3)),),
    ),
    # The same code in seconds, for the tests: the figures mean nothing.
    "toy": Scale(
        2,
        ops=(Shape(8, 16, 64, 4),),
        step=(Shape(16, 8, 32, 4),),
        buffer=(Buffer(2, 8, 256, 1024),),
        attention=(Attention(64, 16, 2, 1),),
        capture=(Model(32, 2, 64, 2),),
        quality=(Quality(1, 512, 256, 64, 4, 128, 256, 2, (3e-3,)),),
    ),
}


def label(case: NamedTuple) -> str:
    """ "N = 2048, d = 512": how a case is named in tables and records."""
    return ", ".join(f"{name} = {value}" for name, value in case._asdict().items())
