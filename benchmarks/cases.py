"""The one table: what is measured on which device at which sizes, by whom, and the least it can take.

A scale says how much time there is: `toy` takes seconds (for tests: its figures mean nothing),
`quick` about 3 minutes on 2 cores, `full` about 17; `gpu` is for a GPU. Bytes and FLOPs of an op are
those of its SPEC, which counts them in fp32.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.floors import Floor
from trustbench.ops.spec import BENCHMARK_SHAPES, OpSpec, Shape


class Case(NamedTuple):
    """One job at one size."""

    subject: str
    label: str  # "N = 2048, d = 512": how tables and records name it
    contenders: tuple[str, ...]
    options: Mapping[str, Any]  # what each contender is made with
    floor: Floor | None = None
    keys: Mapping[str, Any] = {}  # what its rows hold besides


PEERS = ("sparsify", "SAELens", "dictionary_learning", "overcomplete")
_STEPS = ("trustbench", *PEERS, "PyTorch dense", "PyTorch dense, compiled")
# Who takes part, by subject; ops have theirs in peers/ops.py.
CONTENDERS = {
    "step": (*_STEPS, "matmul only"),
    "quality": ("trustbench", *PEERS),
    "buffer": (
        "trustbench", "trustbench, MXFP8", "trustbench, host tier", "trustbench, disk tier",
        "SAELens", "dictionary_learning", "shuffled blocks", "memcpy",
    ),
    "attention": (
        "trustbench", "eager, full matrices", "SDPA, no statistics", "flex_attention, no statistics",
    ),
    "capture": (
        "trustbench", "eager, output_attentions", "TransformerLens", "nnsight", "forward alone",
    ),
}  # fmt: skip
# On a GPU sparsify runs its Triton decoder, and there are more ways to write a step.
_ON_GPU = {
    "step": (
        *_STEPS, "topk, embedding_bag", "flex-sae's loss in PyTorch", "flex-sae's kernels",
        "matmul only",
    ),
    "buffer": (
        "trustbench", "trustbench, MXFP8", "trustbench, host tier", "memcpy", "page-locked copies",
    ),
}  # fmt: skip

ROUNDS = {"toy": 1, "quick": 3, "full": 9, "gpu": 7}
_SMALL, _TOY = Shape(1024, 512, 8192, 32), Shape(16, 8, 32, 4)
_GPU = Shape(16384, 1024, 32768, 64)
_SHAPES: dict[str, dict[str, Sequence[Shape]]] = {
    "ops": {
        "toy": [Shape(8, 16, 64, 4)], "quick": [_SMALL], "full": BENCHMARK_SHAPES, "gpu": [_GPU]
    },
    "step": {"toy": [_TOY], "quick": [_SMALL], "full": BENCHMARK_SHAPES[:1], "gpu": [_GPU]},
}  # fmt: skip
_SIZES: dict[str, dict[str, Sequence[dict[str, Any]]]] = {
    # So many tokens in the pool, so many a batch, of all layers, in bf16.
    "buffer": {
        "toy": [{"layers": 2, "d": 8, "tokens": 256, "pool": 1024}],
        "quick": [{"layers": 6, "d": 512, "tokens": 2048, "pool": 8192}],
        "full": [{"layers": 24, "d": 1024, "tokens": 2048, "pool": 16384}],
        "gpu": [{"layers": 24, "d": 1024, "tokens": 16384, "pool": 131072}],
    },
    # One row of T causal tokens, heads of width D.
    "attention": {
        "toy": [{"T": 64, "D": 16, "heads": 2, "kv_heads": 1}],
        "quick": [{"T": 1024, "D": 64, "heads": 16, "kv_heads": 4}],
        "full": [{"T": 4096, "D": D, "heads": 16, "kv_heads": 4} for D in (64, 128)],
        "gpu": [
            {"T": T, "D": D, "heads": 16, "kv_heads": 4}
            for T, D in ((4096, 64), (4096, 128), (16384, 64), (16384, 128), (131072, 64))
        ],
    },
    # A GPT-NeoX on one row of T tokens.
    "capture": {
        "toy": [{"T": 32, "layers": 2, "d": 64, "heads": 2}],
        "quick": [{"T": 1024, "layers": 4, "d": 512, "heads": 8}],
        "full": [{"T": 2048, "layers": 6, "d": 512, "heads": 8}],
    },
    # One layer of the demo's model; `dead_after` tokens for AuxK; `points` of each curve.
    "quality": {
        "toy": [
            {"layer": 1, "tokens": 512, "test_tokens": 256, "d_sae": 64, "k": 4, "batch": 128,
             "dead_after": 256, "points": 2, "rates": (3e-3,)},
        ],
        "quick": [
            {"layer": 3, "tokens": 40_960, "test_tokens": 8_192, "d_sae": 2048, "k": 32,
             "batch": 1024, "dead_after": 10_000, "points": 2, "rates": (3e-3, 6e-3)},
        ],
        "full": [
            {"layer": 3, "tokens": 163_840, "test_tokens": 20_000, "d_sae": 4096, "k": 32,
             "batch": 2048, "dead_after": 20_000, "points": 5, "rates": (3e-3, 4e-3, 6e-3)},
        ],
    },
}  # fmt: skip


def cases(subject: str, scale: str, *, gpu: bool = False) -> list[Case]:
    """Every case of a subject at a scale; gpu: with the contenders of a GPU, in bf16 alone."""
    if subject == "ops":
        return [case for shape in _SHAPES["ops"][scale] for case in _ops(shape, bf16=gpu)]
    who = _ON_GPU.get(subject, CONTENDERS[subject]) if gpu else CONTENDERS[subject]
    if subject == "step":
        kinds = ("bf16",) if gpu else ("fp32", "bf16")
        return [_step(shape, kind, who) for shape in _SHAPES["step"][scale] for kind in kinds]
    floor = {"buffer": _moved, "attention": _attention, "capture": _forward}.get(subject)
    options = {"bf16": True} if gpu and subject == "attention" else {}
    return [
        Case(subject, label(sizes), who, sizes | options, floor(**sizes, gpu=gpu) if floor else None)
        for sizes in _SIZES[subject].get(scale, ())
    ]


def label(sizes: Mapping[str, Any]) -> str:
    """ "N = 2048, d = 512"."""
    return ", ".join(f"{name} = {value}" for name, value in sizes.items())


def spec(op: str) -> OpSpec:
    """What is said about an op beside it."""
    return importlib.import_module(f"trustbench.ops.{op}").SPEC


def _ops(shape: Shape, *, bf16: bool) -> list[Case]:
    from benchmarks.peers.ops import CONTENDERS as of

    found = []
    for op, contenders in of.items():
        about = spec(op)
        # In bf16 at least half of the bytes; optimisers and indices have no bf16.
        kinds = [kinds for _, kinds in about.tensors.values() if isinstance(kinds, tuple)]
        narrow = bf16 and any(torch.bfloat16 in known for known in kinds)
        floor = Floor(
            about.bytes(shape) / (2 if narrow else 1),
            about.flops(shape),
            "bf16" if narrow else "fp32",
        )
        options = {"op": op, "shape": shape}
        found.append(
            Case("ops", f"{op}: {label(shape._asdict())}", tuple(contenders), options, floor)
        )
    return found


def _step(shape: Shape, kind: str, who: tuple[str, ...]) -> Case:
    """The encoder's matmul, the code's rows read once, and Adam reading and writing its state."""
    floor = Floor(
        spec("sparse_adam").bytes(shape) + spec("decode").bytes(shape),
        spec("encode_topk").flops(shape),
        kind,
    )
    # No feature is dead in a speed run.
    options = {"bf16": kind == "bf16", "lr": 1e-4, "steps": 1000, "dead_after": 0}
    sizes = shape._asdict()
    return Case("step", label(sizes), who, sizes | options, floor, {"matmul": kind})


def _moved(layers: int, d: int, tokens: int, pool: int, gpu: bool) -> Floor:
    """Put and taken, read and written, in bf16."""
    return Floor(2 * 2.0 * layers * tokens * d * 2)


def _attention(T: int, D: int, heads: int, kv_heads: int, gpu: bool) -> Floor:
    head, of = Shape(T, D, 1, 1), spec("attention_capture")  # the SPEC counts one head
    return Floor(
        heads * of.bytes(head) / (2 if gpu else 1), heads * of.flops(head), "bf16" if gpu else "fp32"
    )


def _forward(T: int, layers: int, d: int, heads: int, gpu: bool) -> Floor:
    """A forward's matmuls in fp32, half of attention's (it is causal), weights read once."""
    weights = 12.0 * layers * d**2  # attention 4 d², MLP 8 d²
    return Floor(4 * weights, 2 * weights * T + 2.0 * layers * T**2 * d)
