"""A training run: configuration, schedules, the loop, checkpoints, metrics."""

from trustbench.training.config import TrainConfig
from trustbench.training.loop import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "train"]
