"""What the heads of a Hugging Face causal LM look at: capture, patterns, scores."""

from trustbench.attention.head_attention import AttentionFiles, HeadAttention
from trustbench.attention.layers import capture
from trustbench.attention.linear import LinearAttention

__all__ = ["AttentionFiles", "HeadAttention", "LinearAttention", "capture"]
