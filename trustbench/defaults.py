"""Defaults that ops, steps and configs share, said once."""

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Adam's (Kingma & Ba 2015, algorithm 1)
DEAD_AFTER_TOKENS = 10_000_000  # of no activity: the feature is dead (Gao et al. 2024, A.2)
