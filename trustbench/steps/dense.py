"""A ReLU step in its dense regime: five matmuls, and one pass over the activations between them.

    acts = relu(x W_encᵀ + b)      error = acts W_dec + b_dec - x      dacts = error W_decᵀ
    dpre = dacts + slope where acts > 0       dW_dec = actsᵀ error       dW_enc = dpreᵀ x

While thousands of features are active on a token, gathering their rows costs more than multiplying
with all of them. The first matmul is encode_relu's dense form, with bias, ReLU and the sums for L1
and L0 in its epilogue; the others are the library's (their rate is the floor here), the residual
being the addend of the second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trustbench.ops import dispatch

if TYPE_CHECKING:
    from trustbench.steps.triton import DeviceTrainer

# Where the sparse path's three gathers of L0 rows cost about what the dense path's four further
# matmuls do at F = 32768, d = 1024, on paper; `trustbench tune` measures it.
DENSE_ABOVE = 256.0
CROSSOVER = "relu_dense_above"  # under which the measured figure is kept


def measured_crossover(device: torch.device, d_in: int, d_sae: int) -> float:
    """The L0 where both paths cost the same: as measured on this card, or DENSE_ABOVE."""
    found = dispatch.triton("_tuned").figure(CROSSOVER, device, d=d_in, F=d_sae)
    return DENSE_ABOVE if found is None else found


def run(
    trainer: DeviceTrainer, x: Tensor, centred: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step; returns (mse, penalty, active entries, activations of every feature [F])."""
    sae, cfg, a, N = trainer.sae, trainer.sae.cfg, trainer.adam, len(x)
    W_enc, W_dec = trainer.read_weights
    acts, mass, fired = dispatch.triton("encode_relu").dense(centred, W_enc, trainer.weights.b_enc)
    error = torch.addmm((sae.b_dec - x.float()).to(x.dtype), acts, W_dec)
    mse = error.float().square().sum() / N
    norms = torch.ones_like(trainer.weights.b_enc)
    if cfg.l1_form == "decoder_norm":
        norms = trainer.weights.W_dec.norm(dim=1)
    penalty = 2 * slope * (mass * norms).sum() / N
    trainer.guard(mse + penalty)
    dacts = error @ W_dec.T
    db = dispatch.triton("_dense_grad").mask_gradient(acts, dacts, slope * norms)

    dW_dec, dW_enc = _fp32_product(acts, error), _fp32_product(dacts, centred)
    if cfg.l1_form == "decoder_norm":
        along = slope * mass / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        dW_dec.addcmul_(along[:, None], trainer.weights.W_dec)
    b_dec_grad = error.sum(0, dtype=torch.float32) - db @ trainer.weights.W_enc
    if a.clip_norm:
        inner = dW_dec
        if cfg.unit_norm:
            W = trainer.weights.W_dec
            inner = dW_dec - (dW_dec * W).sum(1, keepdim=True) * W
        squares = inner.square().sum() + dW_enc.square().sum() + db.square().sum()
        trainer.clip(squares + b_dec_grad.square().sum())

    adam, m = dispatch.triton("adam").adam, trainer.moments
    shared = (trainer.figures, a.beta1, a.beta2, a.eps)
    copy_enc, copy_dec = trainer.copies or (None, None)
    adam(trainer.weights.W_enc, dW_enc, m.m_W_enc, m.v_W_enc, *shared, False, copy_enc)
    adam(trainer.weights.W_dec, dW_dec, m.m_W_dec, m.v_W_dec, *shared, cfg.unit_norm, copy_dec)
    small = [t.view(1, -1) for t in (trainer.weights.b_enc, db, m.m_b_enc, m.v_b_enc)]
    adam(*small, *shared, False)
    trainer.update_b_dec(b_dec_grad)
    return mse, penalty, fired.sum(), fired


def _fp32_product(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b [F, d] in fp32, from operands in any dtype."""
    if a.dtype == torch.float32:
        return a.T @ b
    if a.is_cuda:
        return torch.mm(a.T, b, out_dtype=torch.float32)
    return a.T.float() @ b.float()
