"""A ReLU step in its dense regime: five matmuls, and one pass over the activations between them.

    acts = relu(x W_encᵀ + b)      error = acts W_dec + b_dec - y      dacts = error W_decᵀ
    dpre = dacts + slope where acts > 0       dW_dec = actsᵀ error       dW_enc = dpreᵀ x

While thousands of features are active on a token, gathering their rows costs more than multiplying
with all of them. The first matmul is `relu_dense`, with bias, ReLU and the sums for L1 and L0 in its
epilogue; the others are the library's (their rate is the floor here), the residual being the addend
of the second.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from trustbench import ops, tuned
from trustbench.ops.parameters import Weights

# Where the sparse path's three gathers of L0 rows cost about what the dense path's four further
# matmuls do at F = 32768, d = 1024, on paper; `trustbench tune` measures it.
DENSE_ABOVE = 256.0
CROSSOVER = "relu_dense_above"  # under which the measured figure is kept


def measured_crossover(device: torch.device, d_in: int, d_sae: int) -> float:
    """The L0 where both paths cost the same: as measured on this card, or DENSE_ABOVE."""
    found = tuned.figure(CROSSOVER, device, d=d_in, F=d_sae)
    return DENSE_ABOVE if found is None else found


class DenseTerms(NamedTuple):
    """A dense step's loss and gradients, these in units of 2 / N."""

    mse: Tensor
    penalty: Tensor
    error: Tensor  # [N, d_out]
    gradients: Weights
    through_x: Tensor  # [d_in]
    fired: Tensor  # [F] int32


def terms(view: Any, centred: Tensor, y: Tensor, slope: Tensor, decoder_norm: bool) -> DenseTerms:
    """Loss and gradients of rows [N, d_in]; slope, a scalar on the device: half the penalty's."""
    N, W = len(centred), view.master_W_dec
    acts, mass, fired = ops.relu_dense(centred, view.W_enc, view.b_enc)
    error = torch.addmm((view.b_dec - y.float()).to(y.dtype), acts, view.W_dec)
    mse = error.float().square().sum() / N
    norms = W.norm(dim=1) if decoder_norm else torch.ones_like(view.b_enc)
    penalty = 2 * slope * (mass * norms).sum() / N
    dacts = error @ view.W_dec.T
    db = ops.mask_gradient_(acts, dacts, slope * norms)
    dW_dec, dW_enc = _fp32_product(acts, error), _fp32_product(dacts, centred)
    if decoder_norm:
        along = slope * mass / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        dW_dec.addcmul_(along[:, None], W)
    through_x = -(db @ view.master_W_enc)
    return DenseTerms(mse, penalty, error, Weights(dW_enc, dW_dec, db), through_x, fired)


def squared_norm(gradients: Weights, W_dec: Tensor, unit_norm: bool) -> Tensor:
    """Of the gradients that are applied: the decoder's without its part along each row."""
    inner = gradients.W_dec
    if unit_norm:
        inner = inner - (inner * W_dec).sum(1, keepdim=True) * W_dec
    return inner.square().sum() + gradients.W_enc.square().sum() + gradients.b_enc.square().sum()


def _fp32_product(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b [F, d] in fp32, from operands in any dtype."""
    if a.dtype == torch.float32:
        return a.T @ b
    if a.is_cuda:
        return torch.mm(a.T, b, out_dtype=torch.float32)
    return a.T.float() @ b.float()
