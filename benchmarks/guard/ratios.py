"""The time of every CPU op over that of its definition in plain PyTorch.

Both run in this process, by turns and on one thread, so a slow machine slows both. Processor time is
taken, and the least of several rounds: others on the same cores make it longer, never shorter. The
definitions are those of `ops.use("reference")`; the buffer's is an indexed assignment and an indexed
read. Bounds are wide: this is for what instruction counts cannot see, such as a copy too many on the
way to a kernel, or rows that miss the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

import trustbench as tb
from benchmarks.peers.ops import CONTENDERS, Inputs
from trustbench import ops
from trustbench.ops import dispatch
from trustbench.ops.spec import Shape

BOUND = 2.5  # times the recorded ratio; between runs on busy cores ratios differ by up to 1.5
_ROUNDS = 11
_SHAPE = Shape(256, 256, 4096, 16)

Call = Callable[[], object]


def measure() -> dict[str, float]:
    """Our time / PyTorch's time, by op."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        pairs = {name: (call, partial(_plain, call)) for name, call in _calls().items()}
        for name, dtype in (("bf16", torch.bfloat16), ("fp8", torch.float8_e4m3fn)):
            pairs[f"buffer {name}"] = _buffer(dtype)
        return {name: round(_ratio(*pair), 4) for name, pair in pairs.items()}
    finally:
        torch.set_num_threads(threads)


def version() -> str:
    """What the ratios hold for: another instruction set has other ones."""
    return dispatch.native().isa()


def _ratio(ours: Call, plain: Call) -> float:
    ours(), plain()  # warm
    rounds = [(_seconds(ours), _seconds(plain)) for _ in range(_ROUNDS)]
    least, least_plain = map(min, zip(*rounds, strict=True))
    return least / least_plain


def _seconds(call: Call) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def _plain(call: Call) -> None:
    with ops.use("reference"):
        call()


def _calls() -> dict[str, Call]:
    inputs, narrow = Inputs(_SHAPE), Inputs(_SHAPE, dtype=torch.bfloat16)
    q, k = torch.randn(1, 4, 256, 64), torch.randn(1, 2, 256, 64)
    i = inputs
    step = (i.weights, i.code.values, i.by_feature, i.x, i.grad)
    return {name: partial(of["trustbench"], inputs) for name, of in CONTENDERS.items()} | {
        "encode_topk bf16": partial(CONTENDERS["encode_topk"]["trustbench"], narrow),
        "sparse_grad_norm": lambda: ops.sparse_grad_norm(*step),
        "attention_capture": lambda: ops.attention_capture(q, k, k),
    }


def _buffer(dtype: torch.dtype) -> tuple[Call, Call]:
    """Tokens in and out again; plain PyTorch has no fp8 with scales, and keeps them in bf16."""
    capacity, width, n = 4096, 1024, _SHAPE.N
    x = torch.randn(n, width)
    buffer = tb.ActivationBuffer({"layer": width}, capacity, dtype=dtype)
    pool = torch.zeros(capacity, width, dtype=torch.bfloat16)
    slots = torch.randperm(capacity)[:n]

    def ours() -> None:
        buffer.put({"layer": x})
        buffer.take(n)

    def plain() -> None:
        pool[slots] = x.bfloat16()
        _ = pool[slots]

    return ours, plain
