"""Streaming shuffle buffers between the model's forward and the training step."""

from trustbench.buffer.activation_buffer import ActivationBuffer

__all__ = ["ActivationBuffer"]
