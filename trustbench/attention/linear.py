"""Linear-attention layers: what they have instead of a pattern over keys."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# transformers runs the gated delta rule through these functions of the model's own module.
_RULE = "torch_chunk_gated_delta_rule"


class LinearAttention(NamedTuple):
    """A Gated DeltaNet layer (Yang et al. 2024, arXiv:2412.06464), whose state S forgets and learns:

    S_t = α_t S_{t-1} (I - β_t k_t k_tᵀ) + β_t v_t k_tᵀ.
    """

    decay: Tensor  # [B, T, H]: α_t = exp(g_t), what a step keeps of the state
    write: Tensor  # [B, T, H]: β_t, how much of a value is written
    look_back: Tensor  # [B, H]: 1 / (1 - mean_t α_t), tokens
    state_norm: Tensor  # [B, H]: Frobenius norm of the state after the last token


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """{path: module} of the Gated DeltaNet layers."""
    return {n: m for n, m in model.named_modules() if type(m).__name__.endswith("GatedDeltaNet")}


@contextmanager
def recorded(
    layers: dict[str, nn.Module], keep: Callable[[str, LinearAttention], None], real: Tensor | None
) -> Iterator[None]:
    """Inside the block every run of these layers is handed to `keep`.

    Parameters
    ----------
    real : Tensor [B, T] bool or None
        Tokens that are not padding: `look_back` is theirs.
    """
    running: list[str] = []
    handles = []
    for name, layer in layers.items():

        def enter(*_: Any, name: str = name) -> None:
            running[:] = [name]

        handles.append(layer.register_forward_pre_hook(enter))
    homes = {sys.modules[type(layer).__module__] for layer in layers.values()}
    originals = {home: getattr(home, _RULE) for home in homes}

    def wrapped(rule: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            wanted = kwargs.pop("output_final_state", False)
            out, state = rule(*args, output_final_state=True, **kwargs)
            decay, write = kwargs["g"].float().exp(), kwargs["beta"].float()
            weight = torch.ones_like(decay[..., :1]) if real is None else real[..., None].float()
            mean = (decay * weight).sum(1) / weight.sum(1).clamp_min(1)
            norm = state.float().flatten(2).norm(dim=2)
            keep(running[0], LinearAttention(decay, write, 1 / (1 - mean), norm))
            return out, state if wanted else None

        return run

    for home, rule in originals.items():
        setattr(home, _RULE, wrapped(rule))
    try:
        yield
    finally:
        for home, rule in originals.items():
            setattr(home, _RULE, rule)
        for handle in handles:
            handle.remove()
