"""Adam's arithmetic, shared by the kernels that apply it, and the storage of its moments."""

import math

import torch
import triton
import triton.language as tl

from trustbench import devices

# The figures of a step, fp32 on the device, so that a captured graph can be replayed with new ones.
_STEP_SIZE, _ROOT, _SCALE, _LOSS, _NUMBER, _SLOPE = (tl.constexpr(place) for place in range(6))


def scalars(
    step: int, lr: float, beta1: float, beta2: float, scale: float = 1.0, slope: float = 0.0
) -> list[float]:
    """lr / (1 - beta1^step), 1 / sqrt(1 - beta2^step), the gradients' scale, a finite loss, step, l1.

    Kernels change nothing when the fourth, the step's loss, is not finite. The last is what an
    active pre-activation's gradient gains from the L1 penalty, before the scale.
    """
    root = 1 / math.sqrt(1 - beta2**step) if beta2 else 1.0
    return [lr / (1 - beta1**step), root, scale, 0.0, float(step % 2**24), slope]


def on_device(figures: list[float], device: torch.device) -> torch.Tensor:
    """The figures as a tensor, without waiting for the device."""
    return devices.sent(torch.tensor(figures, dtype=torch.float32), device)


@triton.jit
def may_update(figures):
    """Whether the step's loss is finite."""
    loss = tl.load(figures + _LOSS)
    return loss - loss == 0.0


@triton.jit
def scale_of(figures):
    """What every gradient of the step is multiplied by."""
    return tl.load(figures + _SCALE)


@triton.jit
def slope_of(figures):
    """The L1 penalty's part of an active pre-activation's gradient."""
    return tl.load(figures + _SLOPE)


@triton.jit
def moved(p, g, m, v, figures, beta1, rest1, beta2, rest2, eps):
    """(p, m, v) after one step of Adam with gradient g, as torch.optim.Adam computes it."""
    m += rest1 * (g - m)
    v = beta2 * v + rest2 * g * g
    p -= tl.load(figures + _STEP_SIZE) * m / (tl.sqrt(v) * tl.load(figures + _ROOT) + eps)
    return p, m, v


@triton.jit
def random_bits(place, figures):
    """int32 [..]: 32 bits that depend on a number's place and the step alone (an integer hash)."""
    step = tl.load(figures + _NUMBER).to(tl.int32)
    h = (place.to(tl.int32) ^ (step * 0x3504F333)).to(tl.uint32)
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x2C1B3C6D
    return h ^ (h >> 16)


@triton.jit
def stored(x, bits, kind: tl.constexpr):
    """x as `kind`. bf16 is rounded up or down by chance (16 random bits), right in the mean.

    Adam's second moment moves by a thousandth a step, less than half a unit of bf16's last place:
    rounded to nearest it would never move.
    """
    if kind == tl.bfloat16:
        raised = x.to(tl.uint32, bitcast=True) + (bits & 0xFFFF)
        return (raised & 0xFFFF0000).to(tl.float32, bitcast=True).to(tl.bfloat16)
    return x.to(kind)
