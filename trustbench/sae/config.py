"""SAEConfig: everything that defines an SAE, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from trustbench.fields import (
    Bounds,
    Config,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    PositiveInt,
)
from trustbench.ops.sparse_adam import L1Form
from trustbench.sae.families import FAMILIES, family

L0Form = Literal["l0", "tanh"]
Normalize = Literal["none", "expected_norm"]


@dataclass(frozen=True, kw_only=True)
class SAEConfig(Config):
    """What defines a sparse autoencoder.

    Parameters
    ----------
    d_in
        Width of the activations. 0 means: take it from the model (training fills it in).
    d_out
        For a transcoder (Dunefsky et al. 2024, arXiv:2406.11944): width of what it reconstructs.
        0: it reconstructs its own input. Training fills it in where it has a target.
    skip
        For a transcoder: add W_skip x to the reconstruction (Paulo et al. 2025, arXiv:2501.18823).
    d_sae
        Number of features.
    activation
        The family: "topk" (Gao et al. 2024), "batchtopk" (Bussmann et al. 2024), "matryoshka"
        (BatchTopK, Bussmann et al. 2025), "relu" with an L1 penalty, "panneal" (Karvonen et al.
        2024), "jumprelu" with an L0 penalty, or "gated" (both Rajamanoharan et al. 2024).
    k
        Active features a token, for "topk", "batchtopk" and "matryoshka" (there: on average).
    prefixes
        For "matryoshka": widths of the nested dictionaries, ascending; d_sae is always the last.
        Empty: d_sae / 16, / 8, / 4, / 2.
    l1_coefficient
        For "relu", "panneal" and "gated": weight of the penalty, a sum over features and a mean over
        tokens.
    p_end
        For "panneal": the power at which the penalty ends; it starts as 1.
    p_anneal_start
        For "panneal": share of the run after which the power falls.
    l1_form
        For "relu" and "gated". "decoder_norm": Σ_i acts_i ‖W_dec,i‖ (Anthropic, April 2024).
        "sum": Σ_i acts_i.
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
        two nearest d_in / 2. 0: off. Used with "topk", "batchtopk" and "matryoshka".
    auxk_coefficient
        Weight of the AuxK loss.
    unit_norm
        Keep every decoder row at norm 1: gradients are projected, rows renormalised.
    tied_init
        Start W_enc as W_dec; otherwise W_enc starts as independent random directions. For a
        transcoder: W_dec starts as the image of W_enc under the best linear map of a sample.
    normalize
        "none", or "expected_norm": one scale for all activations, so that the mean of ‖x‖ is
        √d_in; measured when training starts, folded into the weights by `SAE.fold`.
    seed
        Of the initial weights.
    """

    d_in: NonNegativeInt = 0
    d_sae: PositiveInt
    d_out: NonNegativeInt = 0
    skip: bool = False
    activation: Annotated[str, OneOf(FAMILIES)] = "topk"
    k: PositiveInt = 32
    prefixes: list[PositiveInt] = field(default_factory=list)
    p_end: Annotated[float, Bounds(above=0, most=1)] = 0.2
    p_anneal_start: Fraction = 0.5
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
        """What the family refuses: InputError."""
        family(self.activation).check(self)

    @property
    def transcoder(self) -> bool:
        """Whether something else than the input is reconstructed."""
        return self.d_out > 0

    @property
    def width_out(self) -> int:
        """Width of what is reconstructed."""
        return self.d_out or self.d_in

    @property
    def auxk_features(self) -> int:
        """How many dead features AuxK uses at most."""
        if not family(self.activation).auxk:
            return 0
        if self.auxk >= 0:
            return min(self.auxk, self.d_sae)
        return min(2 ** round(math.log2(max(self.d_in / 2, 1))), self.d_sae)
