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

import torch
from torch.nn.functional import normalize

import trustbench as tb
from trustbench import ops
from trustbench.ops import dispatch
from trustbench.ops.sparse_adam import Moments, Weights

BOUND = 2.5  # times the recorded ratio; between runs on busy cores ratios differ by up to 1.5
_ROUNDS = 11
_N, _D, _F, _K = 256, 256, 4096, 16

Pair = tuple[Callable[[], object], Callable[[], object]]


def measure() -> dict[str, float]:
    """Our time / PyTorch's time, by op."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        return {name: round(_ratio(*pair), 4) for name, pair in _pairs().items()}
    finally:
        torch.set_num_threads(threads)


def version() -> str:
    """What the ratios hold for: another instruction set has other ones."""
    return dispatch.native().isa()


def _ratio(ours: Callable[[], object], plain: Callable[[], object]) -> float:
    ours(), plain()  # warm
    rounds = [(_seconds(ours), _seconds(plain)) for _ in range(_ROUNDS)]
    least, least_plain = map(min, zip(*rounds, strict=True))
    return least / least_plain


def _seconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def _pairs() -> dict[str, Pair]:
    found = {name: (call, _plain(call)) for name, call in _calls().items()}
    found["buffer bf16"] = _buffer(torch.bfloat16)
    found["buffer fp8"] = _buffer(torch.float8_e4m3fn)
    return found


def _plain(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        with ops.use("reference"):
            call()

    return run


def _calls() -> dict[str, Callable[[], object]]:
    x, grad, b, b_dec = torch.randn(_N, _D), torch.randn(_N, _D), torch.zeros(_F), torch.zeros(_D)
    W, dense = normalize(torch.randn(_F, _D), dim=1), torch.randn(_F, _D)
    narrow = [t.bfloat16() for t in (x, W, b)]
    high = torch.full((_F,), 2.5)  # about 6 entries in a thousand
    values, indices = ops.encode_topk(x, W, b, _K)
    by_feature = ops.transpose_code(indices, _F)
    weights = Weights(W.clone(), W.clone(), b.clone())
    moments, m, v = Moments.zeros_like(weights), torch.zeros_like(W), torch.zeros_like(W)
    q, k = torch.randn(1, 4, 256, 64), torch.randn(1, 2, 256, 64)
    step = (weights, values, by_feature, x, grad)
    return {
        "encode_topk": lambda: ops.encode_topk(x, W, b, _K),
        "encode_topk bf16": lambda: ops.encode_topk(*narrow, _K),
        "encode_relu": lambda: ops.encode_relu(x, W, b, high),
        "encode_batchtopk": lambda: ops.encode_batchtopk(x, W, b, _K),
        "decode": lambda: ops.decode(values, indices, W),
        "reconstruct": lambda: ops.reconstruct(values, indices, W, b_dec, x),
        "code_grad": lambda: ops.code_grad(grad, indices, W),
        "transpose_code": lambda: ops.transpose_code(indices, _F),
        "weight_grad": lambda: ops.weight_grad(values, indices, x, _F),
        "adam": lambda: ops.adam_(W, dense, m, v, step=1, lr=1e-6, unit_norm=True),
        "sparse_adam": lambda: ops.sparse_adam_(*step, moments, step=1, lr=1e-6),
        "sparse_grad_norm": lambda: ops.sparse_grad_norm(*step),
        "attention_capture": lambda: ops.attention_capture(q, k, k),
    }


def _buffer(dtype: torch.dtype) -> Pair:
    """Tokens in and out again; plain PyTorch has no fp8 with scales, and keeps them in bf16."""
    capacity, width = 4096, 1024
    x = torch.randn(_N, width)
    buffer = tb.ActivationBuffer({"layer": width}, capacity, dtype=dtype)
    pool = torch.zeros(capacity, width, dtype=torch.bfloat16)
    slots = torch.randperm(capacity)[:_N]

    def ours() -> None:
        buffer.put({"layer": x})
        buffer.take(_N)

    def plain() -> None:
        pool[slots] = x.bfloat16()
        _ = pool[slots]

    return ours, plain
