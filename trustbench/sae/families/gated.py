"""Gated SAEs (Rajamanoharan et al. 2024, arXiv:2404.16014): which features, and how much, apart.

    π_gate = x W_encᵀ + b_enc          acts = [π_gate > 0] ⊙ ReLU(e^{r_mag} ⊙ x W_encᵀ + b_mag)
    loss = mean_n ‖x - x_hat(acts)‖² + λ mean_n Σ_i ReLU(π_gate,i)
           + mean_n ‖x - x_hat_frozen(ReLU(π_gate))‖²

with x without b_dec, and a decoder that the last term does not train (eq. 5 to 8). The penalty
shrinks the gate alone; the magnitudes are free of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustbench import ops
from trustbench.ops import Code
from trustbench.sae.families import relu
from trustbench.sae.families.base import Family, How, reconstructed
from trustbench.sae.losses import LossTerms


def _magnitudes(view: Any, gate: Any) -> Code:
    """The code, of the gate's."""
    features = gate.indices.long()
    plain = gate.values - view.b_enc[features]
    values = (view.r_mag.exp()[features] * plain + view.b_mag[features]).relu()
    return gate._replace(values=values)


def encode(view: Any, centred: Tensor, how: How) -> Code:
    return _magnitudes(view, relu.encode(view, centred, how))


def objective(sae: Any, x: Tensor, y: Tensor, dead: Tensor | None) -> LossTerms:
    gate = relu.encode(sae, sae.centred(x), How())
    code = _magnitudes(sae, gate)
    error, squared = reconstructed(sae, code, y)
    penalty = sae.cfg.l1_coefficient * relu.l1(sae, gate) / len(x)
    _, frozen = ops.reconstruct(
        gate.values, gate.indices, sae.W_dec.detach(), sae.b_dec.detach(), y, gate.row_offsets
    )
    mse, zero = squared.mean(), x.new_zeros(())
    return LossTerms(mse + penalty + frozen.mean(), mse, penalty, zero, y + error, code)


FAMILY = Family(
    "gated",
    "gates and magnitudes apart, against shrinkage (Rajamanoharan et al. 2024, arXiv:2404.16014)",
    frozenset({"l1_coefficient", "l1_form"}),
    encode,
    objective,
    parameters=lambda cfg: {"r_mag": torch.zeros(cfg.d_sae), "b_mag": torch.zeros(cfg.d_sae)},
)
