"""Residual streams, module outputs and attention of any Hugging Face causal LM."""

from trustbench.capture.attention_layers import attention
from trustbench.capture.head_attention import AttentionFiles, HeadAttention
from trustbench.capture.hook_points import HookPoint, Site, all_hook_points, resolve_hook_points
from trustbench.capture.linear import LinearAttention
from trustbench.capture.model import ActivationCapture, load_model, replaced

__all__ = [
    "ActivationCapture",
    "AttentionFiles",
    "HeadAttention",
    "HookPoint",
    "LinearAttention",
    "Site",
    "all_hook_points",
    "attention",
    "load_model",
    "replaced",
    "resolve_hook_points",
]
