"""The straight-through gradients of JumpReLU (Rajamanoharan et al. 2024, arXiv:2407.14435).

K is the rectangle kernel: 1 where |u| < 1/2, else 0. Both functions are elementwise over the stored
entries of a code; entries further than bandwidth/2 below their threshold need not be stored, since
their value and every gradient are zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _kernel(pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    return ((pre - theta).abs() < bandwidth / 2).to(pre.dtype)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, theta = ctx.saved_tensors
        d_pre = grads[0] * (pre > theta)
        # eq. 11: d JumpReLU / dθ = -(θ / ε) K((z - θ) / ε)
        d_theta = -grads[0] * theta / ctx.bandwidth * _kernel(pre, theta, ctx.bandwidth)
        return d_pre, d_theta, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        pre, theta = ctx.saved_tensors
        # eq. 12: d H(z - θ) / dθ = -(1 / ε) K((z - θ) / ε)
        return None, -grads[0] / ctx.bandwidth * _kernel(pre, theta, ctx.bandwidth), None


def jump(pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    """JumpReLU: pre where pre > theta, else 0 (eq. 4), with the gradient of eq. 11 for theta."""
    return _Jump.apply(pre, theta, bandwidth)


def step(pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    """H(pre - theta), the count of an active entry, with the gradient of eq. 12 for theta."""
    return _Step.apply(pre, theta, bandwidth)
