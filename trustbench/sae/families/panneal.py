"""ReLU with a p-annealed penalty (Karvonen et al. 2024, arXiv:2408.00113, section 5).

    penalty = λ · mean_n Σ_i acts_i^p        p falls from 1 to p_end in ten steps

L1 shrinks what it should only choose; as p falls the penalty nears L0, which does not. When p falls,
λ is multiplied by Σ acts^p / Σ acts^p' over about the last ten batches, so that the penalty stays as
large. Near 0 the power is (acts + ε)^p - ε^p, whose slope is finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustbench.sae.families import relu
from trustbench.sae.families.base import Family, Penalty, Terms
from trustbench.sae.losses import LossTerms, plain_objective

_STEPS = 10
_EPS = 1e-6
_DECAY = 0.9  # of the running sums


def _power(values: Tensor, p: Tensor) -> Tensor:
    """Σ over the entries; those behind a padded code's are 0 and add nothing."""
    return ((values + _EPS) ** p - _EPS**p).sum()


def objective(sae: Any, x: Tensor, y: Tensor, dead: Tensor | None) -> LossTerms:
    def penalty(code: Any) -> Tensor:
        return sae.lp_coefficient.to(x.dtype) * _power(code.values, sae.lp_p.to(x.dtype)) / len(x)

    return plain_objective(sae, x, y, relu.encode, dead, penalty)


def penalty(view: Any, terms: Terms, half: Any) -> Penalty:
    values, p = terms.code.values, view.lp_p
    push = view.lp_coefficient * p * (values + _EPS) ** (p - 1)
    return Penalty(view.lp_coefficient * _power(values, p), push)


def before(sae: Any, done: float) -> None:
    """Let p fall where the run has come to its next step."""
    start = sae.cfg.p_anneal_start
    share = (done - start) / (1 - start) if start < 1 else 0.0
    stage = min(max(int(share * _STEPS), 0), _STEPS)
    p = _at(sae.cfg, stage)
    falls = sae.lp_p > p + 1e-4
    known = falls & (sae.lp_sums[1] > 0)
    ratio = torch.where(known, sae.lp_sums[0] / sae.lp_sums[1], 1.0)
    sae.lp_coefficient.mul_(ratio)
    sae.lp_p.fill_(p)
    sae.lp_next.fill_(_at(sae.cfg, min(stage + 1, _STEPS)))
    sae.lp_sums.mul_(~falls)


def _at(cfg: Any, stage: int) -> float:
    return 1 + (cfg.p_end - 1) * stage / _STEPS


def after(sae: Any, values: Tensor) -> None:
    """Running sums of acts^p, with p as it is and as it will be."""
    values = values[values > 0] if values.device.type == "cpu" else values
    sums = torch.stack([_power(values, p) for p in (sae.lp_p, sae.lp_next)])
    sae.lp_sums.copy_(torch.where(sae.lp_sums > 0, _DECAY * sae.lp_sums + (1 - _DECAY) * sums, sums))


def _buffers(cfg: Any) -> dict[str, Tensor]:
    return {
        "lp_p": torch.tensor(1.0),
        "lp_next": torch.tensor(_at(cfg, 1)),
        "lp_coefficient": torch.tensor(float(cfg.l1_coefficient)),
        "lp_sums": torch.zeros(2),
    }


FAMILY = Family(
    "panneal",
    "ReLU, its penalty annealed from L1 towards L0 (Karvonen et al. 2024, arXiv:2408.00113)",
    frozenset({"l1_coefficient", "p_end", "p_anneal_start"}),
    relu.encode,
    objective,
    relu.terms,
    penalty=penalty,
    coefficient=lambda cfg: 1.0,  # λ is in the penalty
    buffers=_buffers,
    before=before,
    after=after,
)
