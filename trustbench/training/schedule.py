"""Schedules: pure functions of the share of the run that is done."""

from __future__ import annotations

import math

from trustbench.training.config import TrainConfig


def lr_factor(config: TrainConfig, tokens: float) -> float:
    """What the peak learning rate is multiplied by after `tokens` tokens: in [0, 1]."""
    warmup = config.warmup_fraction * config.tokens
    if tokens < warmup:
        return tokens / warmup
    left = (config.tokens - tokens) / max(config.decay_fraction * config.tokens, 1)
    if config.decay == "constant" or left >= 1:
        return 1.0
    return left if config.decay == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def sparsity_factor(config: TrainConfig, tokens: float) -> float:
    """What the L1 or L0 coefficient is multiplied by after `tokens` tokens: in [0, 1]."""
    warmup = config.l1_warmup_fraction * config.tokens
    return min(1.0, tokens / warmup) if warmup > 0 else 1.0
