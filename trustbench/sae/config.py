"""SAEConfig: everything that defines an SAE, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from trustbench.errors import bad
from trustbench.fields import (
    Bounds,
    Config,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from trustbench.ops.sparse_adam import L1Form

Activation = Literal["topk", "batchtopk", "relu", "jumprelu"]
L0Form = Literal["l0", "tanh"]
Normalize = Literal["none", "expected_norm"]


@dataclass(frozen=True, kw_only=True)
class SAEConfig(Config):
    """What defines a sparse autoencoder.

    Parameters
    ----------
    d_in
        Width of the activations. 0 means: take it from the model (training fills it in).
    d_sae
        Number of features.
    activation
        "topk" (Gao et al. 2024), "batchtopk" (Bussmann et al. 2024), "relu" with an L1 penalty, or
        "jumprelu" (Rajamanoharan et al. 2024) with an L0 penalty.
    k
        Active features a token, for "topk" and "batchtopk" (there: on average).
    l1_coefficient
        For "relu": weight of the L1 penalty, a sum over features and a mean over tokens.
    l1_form
        "decoder_norm": Σ_i acts_i ‖W_dec,i‖ (Anthropic, April 2024). "sum": Σ_i acts_i.
    l0_coefficient
        For "jumprelu": weight of the L0 penalty, a sum over features and a mean over tokens.
    l0_form
        "l0": Σ_i H(pre_i - θ_i) with a straight-through gradient for θ (Rajamanoharan et al. 2024,
        eq. 9-12). "tanh": Σ_i tanh(4 acts_i ‖W_dec,i‖) (Anthropic, January 2025).
    bandwidth
        For "jumprelu": width ε of the rectangle kernel of the straight-through gradient.
    jumprelu_threshold
        For "jumprelu": initial threshold θ of every feature.
    auxk
        Dead features that reconstruct the residual (AuxK, Gao et al. 2024, A.2). -1: the power of
        two nearest d_in / 2. 0: off. Used with "topk" and "batchtopk".
    auxk_coefficient
        Weight of the AuxK loss.
    unit_norm
        Keep every decoder row at norm 1: gradients are projected, rows renormalised.
    tied_init
        Start W_enc as W_dec; otherwise W_enc starts as independent random directions.
    normalize
        "none", or "expected_norm": one scale for all activations, so that the mean of ‖x‖ is
        √d_in; measured when training starts, folded into the weights by `SAE.fold`.
    seed
        Of the initial weights.
    """

    d_in: NonNegativeInt = 0
    d_sae: PositiveInt
    activation: Activation = "topk"
    k: PositiveInt = 32
    l1_coefficient: NonNegativeFloat = 1e-3
    l1_form: L1Form = "decoder_norm"
    l0_coefficient: NonNegativeFloat = 1e-3
    l0_form: L0Form = "l0"
    bandwidth: PositiveFloat = 1e-3
    jumprelu_threshold: PositiveFloat = 1e-3
    auxk: Annotated[int, Bounds(least=-1)] = -1
    auxk_coefficient: NonNegativeFloat = 1 / 32
    unit_norm: bool = True
    tied_init: bool = True
    normalize: Normalize = "none"
    seed: NonNegativeInt = 0

    def check(self) -> None:
        """More features active than there are: InputError."""
        if self.activation in ("topk", "batchtopk") and self.k > self.d_sae:
            raise bad("k", self.k, f"an integer in [1, d_sae={self.d_sae}]")

    @property
    def auxk_features(self) -> int:
        """How many dead features AuxK uses at most."""
        if self.activation not in ("topk", "batchtopk"):
            return 0
        if self.auxk >= 0:
            return min(self.auxk, self.d_sae)
        return min(2 ** round(math.log2(max(self.d_in / 2, 1))), self.d_sae)
