"""One layer's training step as others do it, on a GPU, at their best."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import contenders, flex_sae
from benchmarks.gpu.clock import Clock
from trustbench.ops.spec import Shape

Step = Callable[[Tensor], Any]
# Those of the CPU's suite; sparsify runs its Triton decoder here.
SHARED = (
    "sparsify", "SAELens", "dictionary_learning", "overcomplete",
    "PyTorch dense", "PyTorch dense, compiled",
)  # fmt: skip


def steps(shape: Shape, device: torch.device) -> dict[str, Callable[[], Step]]:
    """{peer: what makes its step on x [N, d]; ImportError where the peer is absent}."""
    makers: dict[str, Callable[[], Step]] = {
        name: partial(_shared, name, shape, device) for name in SHARED
    }
    return makers | {
        "topk, embedding_bag": partial(_embedding_bag, shape, device),
        "flex-sae's kernels": partial(_flex_kernels, shape, device),
        "flex-sae's loss in PyTorch": partial(_flex, flex_sae.Loss.apply, shape, device),
    }


def seconds(make: Callable[[], Step], x: Tensor, clock: Clock) -> float | str:
    """Of one step; a peer that is not there says why."""
    try:
        step = make()
    except (ImportError, OSError) as error:  # OSError: a kernel that cannot be fetched
        return f"absent ({error})"
    return clock.seconds(lambda: step(x), rounds=7)


def _shared(name: str, shape: Shape, device: torch.device) -> Step:
    """Under bf16 autocast, without AuxK: no feature is dead in a speed run."""
    kind = contenders.of("steps")[name]
    options = {"lr": 1e-4, "steps": 1000, "bf16": True, "dead_after": 0}
    step = kind(*shape, **options, device=device.type).step
    return lambda x: step(x.float())


def _plain(shape: Shape, device: torch.device) -> tuple[list[Tensor], torch.optim.Optimizer]:
    W = torch.nn.functional.normalize(torch.randn(shape.F, shape.d, device=device), dim=1)
    zeros = [torch.zeros(n, device=device) for n in (shape.F, shape.d)]
    parameters = [t.requires_grad_() for t in (W, W.clone(), *zeros)]
    return parameters, torch.optim.Adam(parameters, lr=1e-4, fused=True)


def _trained(loss: Callable[..., Tensor], shape: Shape, device: torch.device) -> Step:
    parameters, optimizer = _plain(shape, device)

    def step(x: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            total = loss(x, *parameters)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _embedding_bag(shape: Shape, device: torch.device) -> Step:
    """Matmul, torch.topk, embedding_bag, autograd, fused Adam."""

    def loss(x: Tensor, W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
        top = ((x.float() - b_dec) @ W_enc.T + b_enc).topk(shape.k, sorted=False)
        values = top.values.relu().float()
        x_hat = torch.nn.functional.embedding_bag(
            top.indices, W_dec, per_sample_weights=values, mode="sum"
        )
        return (x.float() - x_hat - b_dec).square().sum(1).mean()

    return _trained(loss, shape, device)


def _flex_kernels(shape: Shape, device: torch.device) -> Step:
    """Matmul, torch.topk, flex-sae's Triton loss, autograd, fused Adam."""
    return _flex(flex_sae.kernels(), shape, device)


def _flex(decode: Callable[..., Tensor], shape: Shape, device: torch.device) -> Step:
    """Matmul, torch.topk, a loss of flex-sae's, autograd, fused Adam."""

    def loss(x: Tensor, W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
        top = ((x.float() - b_dec) @ W_enc.T + b_enc).topk(shape.k, sorted=False)
        return decode(top.indices, W_dec, top.values.relu().float(), b_dec, x.float())

    return _trained(loss, shape, device)
