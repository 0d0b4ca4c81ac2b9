"""mask_gradient_: the gradient of a ReLU's dense pre-activations, with a linear penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from trustbench.errors import bad
from trustbench.ops import dispatch
from trustbench.ops.registration import check_tensor, register
from trustbench.ops.spec import FLOATS, OpSpec, same, wide


def mask_gradient_(acts: Tensor, dacts: Tensor, slope: Tensor) -> Tensor:
    """dacts becomes dpre = dacts + slope[i] where acts > 0, else 0; returns Σ_n dpre.

    Parameters
    ----------
    acts : Tensor [N, F], fp32, bf16 or fp64 (fp64 runs the reference)
        Activations of a ReLU (`relu_dense`).
    dacts : Tensor [N, F], dtype of acts, contiguous
        Their gradient; changed in place.
    slope : Tensor [F], fp32 (fp64 for fp64)
        What a linear penalty adds.

    Returns
    -------
    Tensor [F], fp32 (fp64 for fp64): the gradient of the bias.

    Raises
    ------
    InputError
        For a wrong shape or dtype.
    """
    check_tensor("acts", acts, (None, None), *FLOATS)
    check_tensor("dacts", dacts, tuple(acts.shape), acts.dtype)
    check_tensor("slope", slope, (acts.shape[1],), _wide(acts))
    if not dacts.is_contiguous():
        raise bad("dacts.stride", dacts.stride(), "a contiguous tensor")
    return _mask_gradient(acts, dacts, slope)


def _wide(acts: Tensor) -> torch.dtype:
    return torch.float64 if acts.dtype == torch.float64 else torch.float32


@torch.no_grad()
def reference(acts: Tensor, dacts: Tensor, slope: Tensor) -> Tensor:
    dpre = torch.where(acts > 0, dacts.to(_wide(acts)) + slope, 0.0)
    dacts.copy_(dpre)
    return dpre.sum(0)


def _run(acts: Tensor, dacts: Tensor, slope: Tensor) -> Tensor:
    if dispatch.implementation("mask_gradient", acts, cpp=False) == "reference":
        return reference(acts, dacts, slope)
    kernels = dispatch.triton("mask_gradient")
    return kernels.mask_gradient(acts.contiguous(), dacts, slope.contiguous())


def _fake(acts: Tensor, dacts: Tensor, slope: Tensor) -> Tensor:
    return torch.empty_like(slope)


_mask_gradient = register(
    "mask_gradient(Tensor acts, Tensor(a!) dacts, Tensor slope) -> Tensor",
    _run,
    _fake,
)

SPEC = OpSpec(
    "mask_gradient",
    "dpre = (dacts + slope) where acts > 0, and its sum over tokens",
    {"acts": ("N F", FLOATS), "dacts": ("N F", same("acts")), "slope": ("F", wide("acts"))},
    {"db": ("F", wide("acts"))},
    "none: sums run over tokens in fixed parts",
    lambda s: 2.0 * s.N * s.F,
    lambda s: 12.0 * s.N * s.F,
)
