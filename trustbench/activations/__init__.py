"""Activations as training reads them: from a model and a text, or from a cache on disk."""

from trustbench.activations.cache import ActivationCache, Rows
from trustbench.activations.capture import CaptureConfig
from trustbench.activations.shared import SharedSource
from trustbench.activations.sources import CacheSource, ModelSource, Source

__all__ = [
    "ActivationCache",
    "CacheSource",
    "CaptureConfig",
    "ModelSource",
    "Rows",
    "SharedSource",
    "Source",
]
