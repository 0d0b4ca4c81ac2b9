"""One SAE's training step: what it keeps, and the ways to compute it.

Step (base.py) is abstract. FusedStep follows on the host; TritonStep runs on a GPU without waiting
for it; AutogradStep has any family. `pick` chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from trustbench.defaults import DEAD_AFTER_TOKENS
from trustbench.errors import bad
from trustbench.ops import dispatch
from trustbench.sae import SAE
from trustbench.steps.autograd import AutogradStep
from trustbench.steps.base import AdamOptions, Step, StepResult
from trustbench.steps.fused import FusedStep
from trustbench.team import Team

if TYPE_CHECKING:
    from trustbench.steps.device import GraphMemory

__all__ = ["AdamOptions", "AutogradStep", "FusedStep", "Step", "StepResult", "pick"]


def pick(
    sae: SAE,
    adam: AdamOptions | None = None,
    *,
    dead_after_tokens: int = DEAD_AFTER_TOKENS,
    name: str = "",
    team: Team | None = None,
    matmul_dtype: str = "auto",
    moment_dtype: torch.dtype = torch.float32,
    graphs: GraphMemory | None = None,
) -> Step:
    """The fastest step for this SAE, where it is.

    Parameters
    ----------
    sae, adam, dead_after_tokens, name, team, moment_dtype
        As for Step.
    matmul_dtype : "auto", "fp32" or "bf16"
        Of the matmuls' operands; auto: bf16 on a GPU, and on processors that multiply it faster.
    graphs : GraphMemory or None
        For CUDA graphs, on a GPU.

    Raises
    ------
    InputError
        For moments in bf16 where no kernel has them.
    """
    shared: dict[str, Any] = {"dead_after_tokens": dead_after_tokens, "name": name, "team": team}
    fused = sae.family.terms is not None
    if fused and dispatch.implementation("sparse_adam", sae.W_enc) == "triton":
        from trustbench.steps.triton import TritonStep

        compute = torch.float32 if matmul_dtype == "fp32" else torch.bfloat16
        return TritonStep(
            sae, adam, compute_dtype=compute, moment_dtype=moment_dtype, graphs=graphs, **shared
        )
    if moment_dtype != torch.float32:
        where = "except on a GPU" if fused else f"for {sae.family.name}"
        raise bad("state_dtype", "bf16", f"fp32, {where}")
    fast = sae.W_enc.is_cuda or dispatch.has_fast_bf16()
    if matmul_dtype == "bf16" or (matmul_dtype == "auto" and fast):
        sae.matmul_dtype = torch.bfloat16
    return FusedStep(sae, adam, **shared) if fused else AutogradStep(sae, adam, **shared)
