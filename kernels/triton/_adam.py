"""Adam's arithmetic, shared by the kernels that apply it, and the storage of its moments."""

import triton
import triton.language as tl

from trustbench.kernels.sizes import LOSS, NUMBER, ROOT, SCALE, SLOPE, STEP_SIZE

# Places in a step's scalars (trustbench.ops.scalars).
_STEP_SIZE, _ROOT, _SCALE = (tl.constexpr(place) for place in (STEP_SIZE, ROOT, SCALE))
_LOSS, _NUMBER, _SLOPE = (tl.constexpr(place) for place in (LOSS, NUMBER, SLOPE))


@triton.jit
def may_update(scalars):
    """Whether the step's loss is finite."""
    loss = tl.load(scalars + _LOSS)
    return loss - loss == 0.0


@triton.jit
def scale_of(scalars):
    """What every gradient of the step is multiplied by."""
    return tl.load(scalars + _SCALE)


@triton.jit
def slope_of(scalars):
    """The L1 penalty's part of an active pre-activation's gradient."""
    return tl.load(scalars + _SLOPE)


@triton.jit
def adam_update(p, g, m, v, scalars, beta1, rest1, beta2, rest2, eps):
    """(p, m, v) after one step of Adam with gradient g, as torch.optim.Adam computes it."""
    m += rest1 * (g - m)
    v = beta2 * v + rest2 * g * g
    p -= tl.load(scalars + _STEP_SIZE) * m / (tl.sqrt(v) * tl.load(scalars + _ROOT) + eps)
    return p, m, v


@triton.jit
def random_bits(place, scalars):
    """int32 [..]: 32 bits that depend on a number's place and the step alone (an integer hash)."""
    step = tl.load(scalars + _NUMBER).to(tl.int32)
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
