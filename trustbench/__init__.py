"""trustbench: fast sparse autoencoders on every layer of a language model.

import trustbench as tb
tb.train(tb.TrainConfig(model=..., data=..., out=..., tokens=..., sae=tb.SAEConfig(d_sae=32768)))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trustbench import waiting

if TYPE_CHECKING:
    from trustbench import attention, models, ops
    from trustbench.activations import CaptureConfig
    from trustbench.activations import capture_activations as capture
    from trustbench.buffer import ActivationBuffer, Spill
    from trustbench.evals import evaluate
    from trustbench.sae import SAE, SAEConfig, loss
    from trustbench.training import TrainConfig, train

__version__ = "0.1.0"

waiting.policy()  # before anything here imports torch

# Imported on first use, so that `import trustbench` stays light: {name: (module, name there)}.
_HOMES = {
    "ActivationBuffer": ("trustbench.buffer", "ActivationBuffer"),
    "CaptureConfig": ("trustbench.activations", "CaptureConfig"),
    "SAE": ("trustbench.sae", "SAE"),
    "SAEConfig": ("trustbench.sae", "SAEConfig"),
    "Spill": ("trustbench.buffer", "Spill"),
    "TrainConfig": ("trustbench.training", "TrainConfig"),
    "capture": ("trustbench.activations", "capture_activations"),
    "evaluate": ("trustbench.evals", "evaluate"),
    "loss": ("trustbench.sae", "loss"),
    "train": ("trustbench.training", "train"),
}
_MODULES = ("attention", "models", "ops")
__all__ = [
    "SAE",
    "ActivationBuffer",
    "CaptureConfig",
    "SAEConfig",
    "Spill",
    "TrainConfig",
    "__version__",
    "attention",
    "capture",
    "evaluate",
    "loss",
    "models",
    "ops",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"trustbench.{name}")
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'trustbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
