"""One layer's training step as others do it, on a GPU, at their best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import flex_sae
from trustbench.ops.spec import Shape


def steps(shape: Shape, device: torch.device) -> dict[str, Callable[[Tensor], Any] | str]:
    """{peer: its step on x [N, d], or why it is absent}."""
    found: dict[str, Callable[[Tensor], Any] | str] = {}
    makers = {
        "sparsify": _sparsify,
        "gathers through embedding_bag": _embedding_bag,
        "flex-sae's kernels": _flex_kernels,
        "flex-sae's loss in PyTorch": _flex_formulation,
        "dense PyTorch, compiled": _compiled,
    }
    for name, make in makers.items():
        try:
            found[name] = make(shape, device)
        except (ImportError, OSError) as error:  # OSError: a kernel that cannot be fetched
            found[name] = f"absent ({error})"
    return found


def _sparsify(shape: Shape, device: torch.device) -> Callable[[Tensor], Any]:
    """sparsify/trainer.py: bf16 autocast, its Triton decoder, fused Adam."""
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=shape.F, k=shape.k, normalize_decoder=True)
    sae = SparseCoder(shape.d, config, device=device, dtype=torch.float32)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4, fused=True)

    def step(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        with torch.autocast("cuda", torch.bfloat16):
            out = sae(x, y=x, dead_mask=None)
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _plain(shape: Shape, device: torch.device) -> tuple[list[Tensor], torch.optim.Optimizer]:
    W = torch.nn.functional.normalize(torch.randn(shape.F, shape.d, device=device), dim=1)
    zeros = [torch.zeros(n, device=device) for n in (shape.F, shape.d)]
    parameters = [t.requires_grad_() for t in (W, W.clone(), *zeros)]
    return parameters, torch.optim.Adam(parameters, lr=1e-4, fused=True)


def _trained(
    loss: Callable[..., Tensor], shape: Shape, device: torch.device
) -> Callable[[Tensor], Any]:
    parameters, optimizer = _plain(shape, device)

    def step(x: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            total = loss(x, *parameters)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _embedding_bag(shape: Shape, device: torch.device) -> Callable[[Tensor], Any]:
    """Matmul, torch.topk, embedding_bag, autograd, fused Adam."""

    def loss(x: Tensor, W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
        top = ((x.float() - b_dec) @ W_enc.T + b_enc).topk(shape.k, sorted=False)
        values = top.values.relu().float()
        x_hat = torch.nn.functional.embedding_bag(
            top.indices, W_dec, per_sample_weights=values, mode="sum"
        )
        return (x.float() - x_hat - b_dec).square().sum(1).mean()

    return _trained(loss, shape, device)


def _flex_kernels(shape: Shape, device: torch.device) -> Callable[[Tensor], Any]:
    """Matmul, torch.topk, flex-sae's Triton loss, autograd, fused Adam."""
    return _flex(flex_sae.kernels(), shape, device)


def _flex_formulation(shape: Shape, device: torch.device) -> Callable[[Tensor], Any]:
    """The same with the loss written in PyTorch."""
    return _flex(flex_sae.Loss.apply, shape, device)


def _flex(
    decode: Callable[..., Tensor], shape: Shape, device: torch.device
) -> Callable[[Tensor], Any]:
    def loss(x: Tensor, W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
        top = ((x.float() - b_dec) @ W_enc.T + b_enc).topk(shape.k, sorted=False)
        return decode(top.indices, W_dec, top.values.relu().float(), b_dec, x.float())

    return _trained(loss, shape, device)


def _compiled(shape: Shape, device: torch.device) -> Callable[[Tensor], Any]:
    """Dense matmuls with a scattered code, through torch.compile."""

    def loss(x: Tensor, W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
        pre = (x.float() - b_dec) @ W_enc.T + b_enc
        top = pre.topk(shape.k, sorted=False)
        acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        return (x.float() - acts @ W_dec - b_dec).square().sum(1).mean()

    return _trained(torch.compile(loss), shape, device)
