"""ReLU with an L1 penalty (Bricken et al. 2023, Towards Monosemanticity).

penalty = l1_coefficient · mean_n Σ_i acts_i ‖W_dec,i‖        (or Σ_i acts_i)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trustbench import ops
from trustbench.sae.families.base import AnyCode, Family, How, Penalty, Terms, plain_terms
from trustbench.sae.losses import LossTerms, plain_objective


def encode(view: Any, centred: Tensor, how: How) -> AnyCode:
    if how.room is not None:
        return ops.encode_relu_padded(
            centred, view.W_enc, view.b_enc, how.room, matmul_dtype=view.matmul_dtype
        )
    return ops.encode_relu(
        centred, view.W_enc, view.b_enc, matmul_dtype=view.matmul_dtype, out_dtype=how.dtype
    )


def l1(view: Any, code: AnyCode) -> Tensor:
    """Σ over tokens and features of acts_i ‖W_dec,i‖ ("decoder_norm") or acts_i ("sum")."""
    if view.cfg.l1_form == "sum":
        return code.values.sum()
    return (code.values * view.master_W_dec.norm(dim=1)[code.indices.long()]).sum()


def terms(view: Any, x: Tensor, y: Tensor, how: How) -> Terms:
    return plain_terms(view, x, y, encode, how)


def objective(sae: Any, x: Tensor, y: Tensor, dead: Tensor | None) -> LossTerms:
    def penalty(code: Any) -> Tensor:
        return sae.cfg.l1_coefficient * l1(sae, code) / len(x)

    return plain_objective(sae, x, y, encode, dead, penalty)


FAMILY = Family(
    "relu",
    "every positive pre-activation, with an L1 penalty (Bricken et al. 2023)",
    frozenset({"l1_coefficient", "l1_form"}),
    encode,
    objective,
    terms,
    penalty=lambda view, terms, half: Penalty(l1(view, terms.code)),
    coefficient=lambda cfg: cfg.l1_coefficient,
    decoder_norm=lambda cfg: cfg.l1_form == "decoder_norm",
    dense=True,
)
