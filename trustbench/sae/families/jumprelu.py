"""JumpReLU (Rajamanoharan et al. 2024, arXiv:2407.14435): a learnt threshold θ for every feature.

    acts = pre where pre > θ, else 0 (eq. 4)
    penalty = l0_coefficient · mean_n Σ_i H(pre_i - θ_i)

with straight-through gradients for θ (eq. 11, 12). K is the rectangle kernel: 1 where |u| < 1/2, else
0. Entries further than bandwidth/2 below their threshold need not be stored: their value and every
gradient are zero. The form "tanh" of the penalty is Σ_i tanh(4 acts_i ‖W_dec,i‖) (Anthropic, Circuits
Updates January 2025, c = 4).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trustbench import ops
from trustbench.ops import PaddedCode
from trustbench.sae.families.base import AnyCode, Family, How, Part, Penalty, Terms, fits_of
from trustbench.sae.losses import LossTerms, plain_objective


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


# ---------------------------------------------------------------- the family


def _raw(view: Any, centred: Tensor, how: How, *, band: bool) -> tuple[AnyCode, Tensor]:
    """(the code with pre-activations as values, θ [F]); band: with those just below θ."""
    theta = view.log_threshold.exp()
    low = (theta - view.cfg.bandwidth / 2 if band else theta).detach()
    if how.room is not None:
        matmul = view.matmul_dtype
        return ops.encode_relu_padded(
            centred, view.W_enc, view.b_enc, how.room, low, matmul_dtype=matmul
        ), theta
    raw = ops.encode_relu(
        centred, view.W_enc, view.b_enc, low, matmul_dtype=view.matmul_dtype, out_dtype=how.dtype
    )
    return raw, theta


def encode(view: Any, centred: Tensor, how: How) -> AnyCode:
    """With entries of value 0 just below the threshold: the straight-through gradient's."""
    raw, theta = _raw(view, centred, how, band=True)
    return raw._replace(values=jump(raw.values, theta[raw.indices.long()], view.cfg.bandwidth))


def infer(sae: Any, centred: Tensor) -> Any:
    raw, theta = _raw(sae, centred, How(), band=False)
    return raw._replace(values=jump(raw.values, theta[raw.indices.long()], sae.cfg.bandwidth))


def objective(sae: Any, x: Tensor, y: Tensor, dead: Tensor | None) -> LossTerms:
    cfg = sae.cfg
    raw, theta = _raw(sae, sae.centred(x), How(), band=True)
    features = raw.indices.long()
    code = raw._replace(values=jump(raw.values, theta[features], cfg.bandwidth))
    if cfg.l0_form == "l0":
        # The pre-activation itself gets no gradient from the count (the paper's choice).
        count = step(raw.values.detach(), theta[features], cfg.bandwidth).sum()
    else:
        count = torch.tanh(4 * code.values * sae.W_dec.norm(dim=1)[features]).sum()
    return plain_objective(sae, x, y, code, dead, lambda _: cfg.l0_coefficient * count / len(x))


def terms(view: Any, x: Tensor, y: Tensor, how: How) -> Terms:
    raw, theta = _raw(view, view.centred(x), how, band=True)
    pre = raw.values
    if isinstance(raw, PaddedCode):  # behind the entries lies nothing, which is in no band
        there = torch.arange(len(pre), device=pre.device) < raw.row_offsets[-1]
        pre = torch.where(there, pre, float("-inf"))
    above = pre > theta[raw.indices.long()]
    code = raw._replace(values=torch.where(above, pre, 0.0))
    error, squared, products = ops.reconstruct_products(
        code.values, code.indices, view.W_dec, view.b_dec, y, code.row_offsets
    )
    entries = {"pre": pre, "products": products}
    return Terms(code, error, squared, Part(code, error), error, entries=entries, fits=fits_of(code))


def penalty(view: Any, terms: Terms, half: Any) -> Penalty:
    """Gradients of log θ in units of 2 / N, entry by entry: d log θ = θ dθ."""
    cfg, pre = view.cfg, terms.entries["pre"]
    features, values = terms.code.indices.long(), terms.code.values
    theta = view.log_threshold.exp()[features]
    inside = (pre - theta).abs() < cfg.bandwidth / 2
    acts_grad, count_grad, push = terms.entries["products"], 0.0, None
    if cfg.l0_form == "l0":
        total = (values > 0).sum().to(values.dtype)
        count_grad, push = half * cfg.l0_coefficient, torch.zeros_like(values)
    else:
        norms = view.master_W_dec.norm(dim=1)[features]
        size = torch.tanh(4 * values * norms)
        total = torch.where(values > 0, size, 0.0).sum()
        push = 4 * norms * (1 - size * size)
        acts_grad = acts_grad + half * cfg.l0_coefficient * push
    theta_grad = -(theta * acts_grad + count_grad) / cfg.bandwidth
    return Penalty(total, push, {"log_threshold": torch.where(inside, theta * theta_grad, 0.0)})


def _start(cfg: Any) -> dict[str, Tensor]:
    return {"log_threshold": torch.full((cfg.d_sae,), math.log(cfg.jumprelu_threshold))}


FAMILY = Family(
    "jumprelu",
    "a learnt threshold a feature, with an L0 penalty (Rajamanoharan et al. 2024, arXiv:2407.14435)",
    frozenset({"l0_coefficient", "l0_form", "bandwidth", "jumprelu_threshold"}),
    encode,
    objective,
    terms,
    penalty=penalty,
    coefficient=lambda cfg: cfg.l0_coefficient,
    decoder_norm=lambda cfg: cfg.l0_form == "tanh",
    infer=infer,
    parameters=_start,
    rescaled=False,
)
