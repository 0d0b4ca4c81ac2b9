"""What is measured of an SAE, in training and in evaluation alike."""

from __future__ import annotations

import torch
from torch import Tensor

from trustbench.ops import Code


def fvu(x: Tensor, x_hat: Tensor) -> Tensor:
    """Fraction of variance unexplained: Σ‖x - x_hat‖² / Σ‖x - mean x‖² over the tokens of [N, d]."""
    return (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()


def firing_counts(code: Code, d_sae: int) -> Tensor:
    """On how many tokens each feature is active (value > 0), int64 [F]."""
    indices, values = code.indices.flatten(), code.values.flatten()
    return torch.bincount(indices[values > 0], minlength=d_sae)


def l0(code: Code) -> float:
    """Mean number of active features a token."""
    tokens = len(code.values) if code.row_offsets is None else len(code.row_offsets) - 1
    return (code.values > 0).sum().item() / max(tokens, 1)
