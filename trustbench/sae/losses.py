"""The training loss through autograd ("way 1"): any optimiser, any schedule, research of any kind.

    loss = mean_n ‖x - x_hat‖²  +  penalty  +  auxk_coefficient · AuxK

in scaled space. Every reduction is a sum over dimensions or features and a mean over tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trustbench import ops
from trustbench.errors import bad
from trustbench.ops import Code, TopKCode
from trustbench.sae.jumprelu import jump, step
from trustbench.sae.model import SAE


class LossTerms(NamedTuple):
    """The loss and its parts (scalars), the reconstruction in scaled space, and the code."""

    total: Tensor
    mse: Tensor
    penalty: Tensor
    auxk: Tensor
    x_hat: Tensor  # [N, d]
    code: Code


def loss(sae: SAE, x: Tensor, dead: Tensor | None = None) -> LossTerms:
    """The training loss of `sae` on activations x [..., d].

    Parameters
    ----------
    dead : Tensor [F], bool
        Features that count as dead, for AuxK; None: AuxK is 0.

    Raises
    ------
    InputError
        For a wrong shape or dtype, or an empty x.
    """
    x = sae.scaled(x)
    if len(x) == 0:
        raise bad("x.shape", list(x.shape), "at least one token")
    penalty = x.new_zeros(())
    if sae.cfg.activation == "jumprelu":
        code, penalty = _jumprelu(sae, x)
    else:
        code = sae.encode_scaled(x)
        if sae.cfg.activation == "relu":
            penalty = sae.cfg.l1_coefficient * l1_penalty(sae, code) / len(x)
    error, squared = sae.reconstruct_scaled(code, x)
    x_hat, mse = x + error, squared.mean()
    auxk = x.new_zeros(())
    if dead is not None and sae.cfg.auxk_features > 0:
        found = auxk_code(sae, x, dead)
        if found is not None:
            e_hat = ops.decode(found.values, found.indices, sae.W_dec)
            auxk = (error.detach() + e_hat).square().sum(1).mean()
    total = mse + penalty + sae.cfg.auxk_coefficient * auxk
    return LossTerms(total, mse, penalty, auxk, x_hat, code)


def l1_penalty(sae: SAE, code: Code) -> Tensor:
    """Σ over tokens and features of acts_i ‖W_dec,i‖ ("decoder_norm") or acts_i ("sum")."""
    if sae.cfg.l1_form == "sum":
        return code.values.sum()
    return (code.values * sae.W_dec.norm(dim=1)[code.indices.long()]).sum()


def auxk_code(sae: SAE, x: Tensor, dead: Tensor) -> TopKCode | None:
    """The auxk largest pre-activations among the dead features; None when none is dead.

    AuxK (Gao et al. 2024, A.2): these features reconstruct the residual x - x_hat, taken as a
    constant, so that they get a gradient although they never enter the main code.
    """

    def encode(features: Tensor, k: int) -> TopKCode:
        return ops.encode_topk(
            x - sae.b_dec,
            sae.W_enc[features],
            sae.b_enc[features],
            k,
            matmul_dtype=sae.matmul_dtype,
        )

    return among_dead(dead, sae.cfg.auxk_features, encode)


def among_dead(
    dead: Tensor, most: int, encode: Callable[[Tensor, int], tuple[Tensor, Tensor]]
) -> TopKCode | None:
    """`encode(features, k)` with the dead features alone, under their own numbers; None without any.

    k is `most`, or all of them where they are fewer.
    """
    features = dead.nonzero().flatten()
    k = min(most, len(features))
    if k == 0:
        return None
    values, indices = encode(features, k)
    return TopKCode(values, features.to(torch.int32)[indices.long()])


def _jumprelu(sae: SAE, x: Tensor) -> tuple[Code, Tensor]:
    """The code, and the L0 penalty with its straight-through gradient."""
    cfg = sae.cfg
    theta = sae.log_threshold.exp()
    low = (theta - cfg.bandwidth / 2).detach()
    raw = ops.encode_relu(x - sae.b_dec, sae.W_enc, sae.b_enc, low, matmul_dtype=sae.matmul_dtype)
    features = raw.indices.long()
    code = raw._replace(values=jump(raw.values, theta[features], cfg.bandwidth))
    if cfg.l0_form == "l0":
        # The pre-activation itself gets no gradient from the count (the paper's choice).
        count = step(raw.values.detach(), theta[features], cfg.bandwidth).sum()
    else:
        # tanh(4 acts ‖W_dec‖): Anthropic, Circuits Updates January 2025 (c = 4).
        count = torch.tanh(4 * code.values * sae.W_dec.norm(dim=1)[features]).sum()
    return code, cfg.l0_coefficient * count / len(x)
