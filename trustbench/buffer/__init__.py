"""Streaming shuffle buffers between the model's forward and the training step."""

from trustbench.buffer.activation_buffer import ActivationBuffer
from trustbench.buffer.spill import Spill

__all__ = ["ActivationBuffer", "Spill"]
