"""One way into any Hugging Face causal LM: loading, names of its places, reading, replacing."""

from trustbench.models.hook_points import HookPoint, Site, all_hook_points, resolve_hook_points
from trustbench.models.hooks import ActivationCapture, load_model, replaced

__all__ = [
    "ActivationCapture",
    "HookPoint",
    "Site",
    "all_hook_points",
    "load_model",
    "replaced",
    "resolve_hook_points",
]
