"""trustbench: fast sparse autoencoders on every layer of a language model.

import trustbench as tb
tb.train(tb.TrainConfig(model=..., data=..., out=..., tokens=..., sae=tb.SAEConfig(d_sae=32768)))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trustbench import capture, ops, train
    from trustbench.buffer import ActivationBuffer, Spill
    from trustbench.sae import SAE, SAEConfig
    from trustbench.train import TrainConfig

__version__ = "0.1.0"

# Imported on first use, so that `import trustbench` stays light.
_HOMES = {
    "ActivationBuffer": "trustbench.buffer",
    "SAE": "trustbench.sae",
    "SAEConfig": "trustbench.sae",
    "Spill": "trustbench.buffer",
    "TrainConfig": "trustbench.train",
}
_MODULES = ("capture", "ops", "train")  # trustbench.train is a module that can be called
__all__ = [
    "SAE",
    "ActivationBuffer",
    "SAEConfig",
    "Spill",
    "TrainConfig",
    "__version__",
    "capture",
    "ops",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"trustbench.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trustbench' has no attribute {name!r}")
