"""adam_: one step of Adam with the unit-norm constraint on rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trustbench.defaults import BETA1, BETA2, EPS
from trustbench.errors import bad
from trustbench.ops import dispatch
from trustbench.ops.registration import (
    check_flags,
    check_integer,
    check_numbers,
    check_tensor,
    register,
)
from trustbench.ops.scalars import (
    COUNT,
    LOSS,
    NUMBER,
    ROOT,
    SCALE,
    STEP_SIZE,
    random_bits,
    rounded,
    step_scalars,
)
from trustbench.ops.spec import BF16, FP32, FULL, OpSpec, same


def adam_(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int = 1,
    lr: float = 0.0,
    beta1: float = BETA1,
    beta2: float = BETA2,
    eps: float = EPS,
    unit_norm: bool = False,
    scalars: Tensor | None = None,
    copy: Tensor | None = None,
) -> None:
    """One step of Adam (Kingma & Ba 2015, algorithm 1) in place, as torch.optim.Adam computes it.

    Parameters
    ----------
    param, grad, m, v : Tensor [rows, d], fp32 (fp64 runs the reference), contiguous
        param, m and v are updated in place. With `scalars` m and v may be bf16, rounded by chance.
    step : int
        1 for the first update (bias correction).
    unit_norm : bool
        Rows of param have norm 1 and keep it: the gradient's part along each row is removed first,
        and the row is divided by its norm afterwards.
    scalars : Tensor [6], fp32, on the device of param
        `step_scalars` in the place of step and lr, for the Triton kernels: gradients are multiplied
        by its scale, and nothing changes where its loss is not finite.
    copy : Tensor [rows, d], bf16
        With `scalars`: becomes the new param.

    Raises
    ------
    InputError
        For a wrong shape or dtype, or step < 1.
    """
    check_tensor("param", param, (None, None), torch.float32, torch.float64)
    there = param.device
    check_tensor("grad", grad, tuple(param.shape), param.dtype, device=there)
    kinds = (param.dtype,) if scalars is None else (param.dtype, torch.bfloat16)
    for name, tensor in (("m", m), ("v", v)):
        check_tensor(name, tensor, tuple(param.shape), *kinds, device=there)
    if not (param.is_contiguous() and m.is_contiguous() and v.is_contiguous()):
        raise bad("strides", param.stride(), "param, m and v contiguous")
    check_adam(step, lr, beta1, beta2, eps, unit_norm)
    check_scalars(scalars, there)
    if copy is not None:
        check_tensor("copy", copy, tuple(param.shape), torch.bfloat16, device=there)
        if scalars is None:
            raise bad("copy", "a tensor", "None without scalars")
    _adam(param, grad, m, v, copy, scalars, step, lr, beta1, beta2, eps, unit_norm)


def check_adam(step: int, lr: float, beta1: float, beta2: float, eps: float, unit_norm: bool) -> None:
    """The numbers that an Adam step takes."""
    check_integer("step", step)
    check_numbers("a number in [0, 1)", 0, 1, beta1=beta1, beta2=beta2)
    check_numbers("a finite number >= 0", 0, math.inf, lr=lr, eps=eps)
    check_flags(unit_norm=unit_norm)


def check_scalars(scalars: Tensor | None, device: torch.device) -> None:
    """What stands for them on the device."""
    if scalars is not None:
        check_tensor("scalars", scalars, (COUNT,), torch.float32, device=device)


@torch.no_grad()
def adam_reference_(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    unit_norm: bool = False,
) -> None:
    """The definition of `adam_`; also takes one-dimensional tensors without `unit_norm`."""
    if unit_norm:
        grad = grad - (grad * param).sum(-1, keepdim=True) * param
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (v.sqrt() / math.sqrt(1 - beta2**step)).add_(eps)
    param.addcdiv_(m, denominator, value=-lr / (1 - beta1**step))
    if unit_norm:
        on_sphere_(param)


def on_sphere_(rows: Tensor) -> None:
    """Divide every row by its norm; a row of zeros stays."""
    norm = rows.norm(dim=-1, keepdim=True)
    rows.div_(torch.where(norm > 0, norm, torch.ones_like(norm)))


@torch.no_grad()
def scalars_reference_(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    copy: Tensor | None,
    scalars: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    unit_norm: bool,
    salt: int = 0,
) -> None:
    """The definition of `adam_` with scalars. salt: changes the random bits of bf16 moments."""
    held = scalars.tolist()
    if not math.isfinite(held[LOSS]):
        return
    grad = held[SCALE] * grad
    if unit_norm:
        grad = grad - (grad * param).sum(-1, keepdim=True) * param
    wide_m, wide_v = m.to(param.dtype), v.to(param.dtype)
    wide_m = wide_m + (1 - beta1) * (grad - wide_m)
    wide_v = beta2 * wide_v + (1 - beta2) * grad * grad
    param.sub_(held[STEP_SIZE] * wide_m / (wide_v.sqrt() * held[ROOT] + eps))
    if unit_norm:
        on_sphere_(param)
    if m.dtype == torch.bfloat16:
        place = torch.arange(m.numel(), device=m.device).view(m.shape) ^ salt
        bits = random_bits(place, int(held[NUMBER]))
        wide_m, wide_v = rounded(wide_m, bits), rounded(wide_v, bits >> 16)
    m.copy_(wide_m)
    v.copy_(wide_v)
    if copy is not None:
        copy.copy_(param)


def _run(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    copy: Tensor | None,
    scalars: Tensor | None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    unit_norm: bool,
) -> None:
    chosen = dispatch.implementation("adam", param)
    grad = grad.contiguous()
    if chosen == "triton":
        if scalars is None:
            scalars = step_scalars(step, lr, beta1, beta2, device=param.device)
        kernels = dispatch.triton("adam")
        kernels.adam(param, grad, m, v, scalars, beta1, beta2, eps, unit_norm, copy)
    elif chosen == "reference" and scalars is not None:
        scalars_reference_(param, grad, m, v, copy, scalars, beta1, beta2, eps, unit_norm)
    elif chosen == "reference":
        adam_reference_(
            param, grad, m, v,
            step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, unit_norm=unit_norm,
        )  # fmt: skip
    else:
        refuse_scalars(scalars)
        dispatch.native().adam(
            param.data_ptr(), grad.data_ptr(), m.data_ptr(), v.data_ptr(), *param.shape,
            step, lr, beta1, beta2, eps, unit_norm, torch.get_num_threads(),
        )  # fmt: skip


def refuse_scalars(scalars: Tensor | None) -> None:
    """The C++ kernels take a step's scalars as numbers."""
    if scalars is not None:
        raise NotImplementedError(
            "scalars on the device are for the Triton kernels: on a CPU give step, lr and the rest"
        )


def _fake(param: Tensor, *_: object) -> None:
    return None


_adam = register(
    "adam(Tensor(a!) param, Tensor grad, Tensor(b!) m, Tensor(c!) v, Tensor(d!)? copy,"
    " Tensor? scalars, int step, float lr, float beta1, float beta2, float eps, bool unit_norm)"
    " -> ()",
    _run,
    _fake,
)

SPEC = OpSpec(
    "adam",
    "Adam on [F, d], rows kept at unit norm",
    {
        "param": ("rows d", FULL),
        **{name: ("rows d", same("param")) for name in ("grad", "m", "v")},
        "scalars": ("6", FP32),
        "copy": ("rows d", BF16),
    },
    {},
    "none: element by element, a row's norm in one order",
    lambda s: 12.0 * s.F * s.d,
    lambda s: 4.0 * 7 * s.F * s.d,
)
