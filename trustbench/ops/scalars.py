"""The scalars of an optimiser step, as a tensor on the device: a captured graph reads new ones.

STEP_SIZE  lr / (1 - beta1^step)
ROOT       1 / sqrt(1 - beta2^step)
SCALE      what every gradient is multiplied by first
LOSS       the step's loss: nothing is changed where it is not finite
NUMBER     the step, mod 2^24: the seed of the rounding of bf16 moments
SLOPE      what a linear penalty adds to the gradient of an active entry, before SCALE
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trustbench import devices
from trustbench.errors import bad
from trustbench.kernels.sizes import LOSS, NUMBER, ROOT, SCALE, SLOPE, STEP_SIZE
from trustbench.ops.registration import check_integer, check_numbers

__all__ = ["LOSS", "NUMBER", "ROOT", "SCALE", "SLOPE", "STEP_SIZE", "step_scalars"]
COUNT = 6


def step_scalars(
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    *,
    scale: float = 1.0,
    slope: float = 0.0,
    device: torch.device | None = None,
) -> Tensor:
    """The scalars of step `step` (1 for the first), fp32 [6], with loss 0; the host does not wait.

    Raises InputError for a number out of its range.
    """
    check_integer("step", step)
    check_numbers("a number in [0, 1)", 0, 1, beta1=beta1, beta2=beta2)
    check_numbers("a finite number >= 0", 0, math.inf, lr=lr, scale=scale, slope=slope)
    if device is not None and not isinstance(device, torch.device):
        raise bad("device", device, "a torch.device, or None")
    root = 1 / math.sqrt(1 - beta2**step) if beta2 else 1.0
    values = [lr / (1 - beta1**step), root, scale, 0.0, float(step % 2**24), slope]
    return devices.sent(torch.tensor(values, dtype=torch.float32), device or torch.device("cpu"))


def rounded(x: Tensor, bits: Tensor) -> Tensor:
    """fp32 as bf16, up or down by chance (16 bits of `bits`, int64), right in the mean.

    Adam's second moment moves by a thousandth a step, less than half a unit of bf16's last place:
    rounded to nearest it would never move.
    """
    raised = x.view(torch.int32).long() + (bits & 0xFFFF)
    # Back to the range of int32, whose bits are then those of the number.
    raised = (raised & 0xFFFF0000) - ((raised & 0x80000000) << 1)
    return raised.to(torch.int32).view(torch.float32).to(torch.bfloat16)


def random_bits(place: Tensor, number: int) -> Tensor:
    """int64 [...]: 32 bits that depend on a number's place (int64) and the step alone (a hash)."""
    word = 0xFFFFFFFF
    h = (place & word) ^ ((number * 0x3504F333) & word)
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & word
    h = ((h ^ (h >> 15)) * 0x2C1B3C6D) & word
    return h ^ (h >> 16)
