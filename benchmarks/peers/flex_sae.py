"""flex-sae's TopK loss: the decoder and the squared error in one operator with its own backward.

The reconstruction is not kept for autograd: the forward saves the residual, and the backward
gathers decoder rows again for the code's gradient and adds value times residual to the decoder's.
The kernels are on the Hugging Face hub (t-tech/flex-sae); the formulation stands here in PyTorch
for machines that cannot load them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_TOGETHER = 8  # entries of a row at a time: all of them would be an [N, k, d] tensor


def kernels() -> Callable[..., Tensor]:
    """Their Triton kernel: (indices, W_dec, values, b_dec, x) -> loss.

    Raises
    ------
    ImportError
        Without the `kernels` package.
    OSError
        Where the hub cannot be reached.
    """
    from kernels import get_kernel  # the package of that name, not this repository's folder

    return get_kernel("t-tech/flex-sae").triton_topk_sae_loss


def bag_loss(indices: Tensor, W_dec: Tensor, values: Tensor, b_dec: Tensor, x: Tensor) -> Tensor:
    """mean (x - Σ values W_dec[indices] - b_dec)², by torch's own functions."""
    x_hat = torch.nn.functional.embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum")
    return (x - x_hat - b_dec).square().mean()


class Loss(torch.autograd.Function):
    """mean (x - Σ values W_dec[indices] - b_dec)², by the same formulation."""

    @staticmethod
    def forward(
        ctx: Any, indices: Tensor, W_dec: Tensor, values: Tensor, b_dec: Tensor, x: Tensor
    ) -> Tensor:
        x_hat = torch.nn.functional.embedding_bag(
            indices, W_dec, per_sample_weights=values, mode="sum"
        )
        residual = x_hat + b_dec - x
        ctx.save_for_backward(indices, W_dec, values, residual)
        return residual.square().mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        indices, W_dec, values, residual = ctx.saved_tensors
        gradient = residual * (2 * grads[0] / residual.numel())
        dW, dvalues = torch.zeros_like(W_dec), torch.empty_like(values)
        for start in range(0, indices.shape[1], _TOGETHER):
            part = slice(start, start + _TOGETHER)
            rows, weights = indices[:, part], values[:, part]
            dvalues[:, part] = torch.einsum("nd,nkd->nk", gradient, W_dec[rows])
            terms = weights[:, :, None] * gradient[:, None]
            dW.index_add_(0, rows.flatten(), terms.flatten(0, 1))
        return None, dW, dvalues, gradient.sum(0), None
