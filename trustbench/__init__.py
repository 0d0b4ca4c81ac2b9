"""trustbench: fast sparse autoencoders on every layer of a language model.

import trustbench as tb
tb.train(tb.TrainConfig(model=..., data=..., out=..., tokens=..., sae=tb.SAEConfig(d_sae=32768)))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trustbench import waiting
from trustbench.commands import COMMANDS, load

if TYPE_CHECKING:
    from trustbench import attention, models, ops
    from trustbench.activations.capture import CaptureConfig, capture
    from trustbench.attention.heads import HeadsConfig, heads
    from trustbench.benchmarking import BenchConfig, bench
    from trustbench.buffer import ActivationBuffer, Spill
    from trustbench.evals import EvalConfig, evaluate
    from trustbench.installation import info
    from trustbench.sae import SAE, SAEConfig, loss
    from trustbench.studies import study
    from trustbench.studies.demo import DemoConfig, demo
    from trustbench.training import TrainConfig, train
    from trustbench.training.tune import TuneConfig, tune

__version__ = "0.1.0"

waiting.policy()  # before anything here imports torch

# Imported on first use, so that `import trustbench` stays light: {name: "module:name there"}.
_HOMES = {
    "ActivationBuffer": "trustbench.buffer:ActivationBuffer",
    "SAE": "trustbench.sae:SAE",
    "SAEConfig": "trustbench.sae:SAEConfig",
    "Spill": "trustbench.buffer:Spill",
    "loss": "trustbench.sae:loss",
}
for _command in COMMANDS.values():  # the verbs and their configs
    for _dotted in (_command.call, _command.config):
        if _dotted:
            _HOMES[_dotted.partition(":")[2]] = _dotted
_MODULES = ("attention", "models", "ops")
__all__ = [
    "SAE",
    "ActivationBuffer",
    "BenchConfig",
    "CaptureConfig",
    "DemoConfig",
    "EvalConfig",
    "HeadsConfig",
    "SAEConfig",
    "Spill",
    "TrainConfig",
    "TuneConfig",
    "__version__",
    "attention",
    "bench",
    "capture",
    "demo",
    "evaluate",
    "heads",
    "info",
    "loss",
    "models",
    "ops",
    "study",
    "train",
    "tune",
]


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f"trustbench.{name}")
        if name in _HOMES:
            return load(_HOMES[name])
        raise AttributeError(f"module 'trustbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
