"""Residual streams and module outputs of any Hugging Face causal LM."""

from trustbench.capture.hook_points import HookPoint, Site, all_hook_points, resolve_hook_points
from trustbench.capture.model import ActivationCapture, load_model, replaced

__all__ = [
    "ActivationCapture",
    "HookPoint",
    "Site",
    "all_hook_points",
    "load_model",
    "replaced",
    "resolve_hook_points",
]
