"""Sparse autoencoders: the config, the module, the losses, where they start."""

from trustbench.sae.config import SAEConfig
from trustbench.sae.losses import LossTerms, loss
from trustbench.sae.model import SAE, load_saes

__all__ = ["SAE", "LossTerms", "SAEConfig", "load_saes", "loss"]
