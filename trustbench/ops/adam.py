"""adam_: one step of Adam with the unit-norm constraint on rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trustbench.errors import bad
from trustbench.ops import dispatch
from trustbench.ops.registration import (
    check_flags,
    check_integer,
    check_numbers,
    check_tensor,
    register,
)
from trustbench.ops.spec import OpSpec


def adam_(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    unit_norm: bool = False,
) -> None:
    """One step of Adam (Kingma & Ba 2015, algorithm 1) in place, as torch.optim.Adam computes it.

    Parameters
    ----------
    param, grad, m, v : Tensor [rows, d], fp32 (fp64 runs the reference), contiguous
        param, m and v are updated in place.
    step : int
        1 for the first update (bias correction).
    unit_norm : bool
        Rows of param have norm 1 and keep it: the gradient's part along each row is removed first,
        and the row is divided by its norm afterwards.

    Raises
    ------
    InputError
        For a wrong shape or dtype, or step < 1.
    """
    check_tensor("param", param, (None, None), torch.float32, torch.float64)
    for name, tensor in (("grad", grad), ("m", m), ("v", v)):
        check_tensor(name, tensor, tuple(param.shape), param.dtype, device=param.device)
    if not (param.is_contiguous() and m.is_contiguous() and v.is_contiguous()):
        raise bad("strides", param.stride(), "param, m and v contiguous")
    check_adam(step, lr, beta1, beta2, eps, unit_norm)
    _adam(param, grad, m, v, step, lr, beta1, beta2, eps, unit_norm)


def check_adam(step: int, lr: float, beta1: float, beta2: float, eps: float, unit_norm: bool) -> None:
    """The scalars that an Adam step takes."""
    check_integer("step", step)
    check_numbers("a number in [0, 1)", 0, 1, beta1=beta1, beta2=beta2)
    check_numbers("a finite number >= 0", 0, math.inf, lr=lr, eps=eps)
    check_flags(unit_norm=unit_norm)


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
        norm = param.norm(dim=-1, keepdim=True)
        param.div_(torch.where(norm > 0, norm, torch.ones_like(norm)))


def _run(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    unit_norm: bool,
) -> None:
    chosen = dispatch.implementation("adam", param)
    if chosen == "reference":
        options: dict[str, Any] = {"step": step, "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}
        adam_reference_(param, grad, m, v, unit_norm=unit_norm, **options)
        return
    grad = grad.contiguous()
    if chosen == "triton":
        kernels = dispatch.triton("adam")
        figures = kernels.on_device(kernels.scalars(step, lr, beta1, beta2), param.device)
        kernels.adam(param, grad, m, v, figures, beta1, beta2, eps, unit_norm)
        return
    dispatch.native().adam(
        param.data_ptr(), grad.data_ptr(), m.data_ptr(), v.data_ptr(), *param.shape,
        step, lr, beta1, beta2, eps, unit_norm, torch.get_num_threads(),
    )  # fmt: skip


def _fake(param: Tensor, *_: object) -> None:
    return None


_adam = register(
    "adam(Tensor(a!) param, Tensor grad, Tensor(b!) m, Tensor(c!) v, int step, float lr,"
    " float beta1, float beta2, float eps, bool unit_norm) -> ()",
    _run,
    _fake,
)

SPEC = OpSpec(
    "adam",
    "Adam on [F, d], rows kept at unit norm",
    {name: "[rows, d]" for name in ("param", "grad", "m", "v")},
    (torch.float32, torch.float64),
    "none: element by element, a row's norm in one order",
    lambda s: 12.0 * s.F * s.d,
    lambda s: 4.0 * 7 * s.F * s.d,
)
