"""The trainer: configuration, schedules, the fused step, checkpoints, metrics.

This module can be called: `trustbench.train(config)` is `trustbench.train.train(config)`.
"""

import sys
from types import ModuleType
from typing import Any

from trustbench.train.config import TrainConfig
from trustbench.train.loop import TrainResult, train
from trustbench.train.step import LayerTrainer

__all__ = ["LayerTrainer", "TrainConfig", "TrainResult", "train"]


class _CallableModule(ModuleType):
    """Python binds the name `trustbench.train` to this module, whatever is assigned to it before."""

    def __call__(self, config: TrainConfig, **options: Any) -> TrainResult:
        return train(config, **options)


sys.modules[__name__].__class__ = _CallableModule
