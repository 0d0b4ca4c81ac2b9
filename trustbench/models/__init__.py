"""One way into any Hugging Face causal LM: loading, names of its places, reading, replacing."""

from trustbench.models.hook_points import HookPoint, Site, all_hook_points, resolve_hook_points
from trustbench.models.hooks import ActivationCapture, hooked
from trustbench.models.load import load_model

__all__ = [
    "ActivationCapture",
    "HookPoint",
    "Site",
    "all_hook_points",
    "hooked",
    "load_model",
    "resolve_hook_points",
]
