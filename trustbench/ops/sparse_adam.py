"""The fused backward and optimiser step of an SAE: gradients go straight into Adam.

For feature i with entries (row n, value a > 0) and g = dL/dx_hat [N, d]:

    da        = <g[n], W_dec,i> + l1 · (‖W_dec,i‖ or 1)        dpre = da
    dW_dec,i  = Σ a g[n]  (+ l1 (Σ a) W_dec,i / ‖W_dec,i‖ in the decoder-norm form)
    dW_enc,i  = Σ dpre x[n]            db_enc,i = Σ dpre
    with unit_norm: dW_dec,i -= <dW_dec,i, W_dec,i> W_dec,i

then Adam (Kingma & Ba 2015) on the three, and with unit_norm W_dec,i /= ‖W_dec,i‖. A feature without
entries has gradient zero; its moments decay, as in torch.optim.Adam. Neither gradient is ever
written to memory. The projection and the constraint are those of Bricken et al. 2023 (Towards
Monosemanticity, appendix "Advice for training sparse autoencoders").
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from trustbench.errors import bad
from trustbench.ops import dispatch
from trustbench.ops.adam import adam_reference_, check_adam
from trustbench.ops.codes import FeatureCode
from trustbench.ops.registration import check_flags, check_numbers, check_tensor, on_device_of
from trustbench.ops.spec import OpSpec

L1Form = Literal["decoder_norm", "sum"]


class Weights(NamedTuple):
    """The parameters that a code's gradient reaches: all fp32, contiguous."""

    W_enc: Tensor  # [F, d]
    W_dec: Tensor  # [F, d]
    b_enc: Tensor  # [F]


class Moments(NamedTuple):
    """Adam's first (m) and second (v) moments of `Weights`: all fp32, contiguous.

    Those of the matrices may be bf16 for the Triton kernels.
    """

    m_W_enc: Tensor
    v_W_enc: Tensor
    m_W_dec: Tensor
    v_W_dec: Tensor
    m_b_enc: Tensor
    v_b_enc: Tensor

    @classmethod
    def zeros_like(cls, weights: Weights, dtype: torch.dtype = torch.float32) -> Moments:
        """Fresh moments, on the device of the weights; `dtype`: of the matrices' moments."""
        kinds = (w.dtype if w.ndim == 1 or dtype == torch.float32 else dtype for w in weights)
        return cls(
            *(
                torch.zeros_like(w, dtype=kind)
                for w, kind in zip(weights, kinds, strict=True)
                for _ in range(2)
            )
        )


def sparse_adam_(
    weights: Weights,
    values: Tensor,
    code: FeatureCode,
    x: Tensor,
    grad: Tensor,
    moments: Moments,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    unit_norm: bool = True,
    l1: float = 0.0,
    l1_form: L1Form = "sum",
    clip_scale: float = 1.0,
) -> Tensor:
    """One Adam step on `weights`, in place, from a code and the gradient of the reconstruction.

    Parameters
    ----------
    weights : Weights
        Updated in place.
    values : Tensor, fp32, [N, k] or [nnz]
        The code's values, in the order that `code.positions` indexes. Entries <= 0 count for nothing.
    code : FeatureCode
        The code grouped by feature (`transpose_code`).
    x, grad : Tensor, fp32, [N, d]
        Encoder input (after b_dec was subtracted) and dL/dx_hat.
    moments : Moments
        Updated in place.
    step : int
        1 for the first update (Adam's bias correction).
    l1 : float
        Weight of Σ values (or Σ values · ‖W_dec,i‖) in the loss: λ / N for a mean over tokens.
    clip_scale : float
        Every gradient is multiplied by it first (gradient clipping; see `sparse_grad_norm`).

    Returns
    -------
    Tensor, fp32, [d]
        -(Σ_i db_enc,i W_enc,i) with the weights before the update: what the encoder's input
        x - b_dec adds to the gradient of b_dec. Not multiplied by `clip_scale`.
    """
    _check(weights, values, code, x, grad, l1, l1_form)
    if not isinstance(moments, Moments):
        raise bad("moments", type(moments).__name__, "Moments")
    for moment, weight in zip(moments, (w for w in weights for _ in range(2)), strict=True):
        _check_one("moments", moment, tuple(weight.shape), weight.dtype, weight.device)
    check_adam(step, lr, beta1, beta2, eps, unit_norm)
    check_numbers("a finite number >= 0", 0, math.inf, clip_scale=clip_scale)
    arguments = (weights, values, code, x, grad, l1, l1_form)
    chosen = dispatch.implementation("sparse_adam", x)
    if chosen == "reference":
        dW_enc, dW_dec, db_enc = _gradients(*arguments, unit_norm)
        contribution = -(db_enc @ weights.W_enc.detach())
        options: dict[str, Any] = {"step": step, "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}
        m = moments
        adam_reference_(weights.W_enc, clip_scale * dW_enc, m.m_W_enc, m.v_W_enc, **options)
        adam_reference_(weights.b_enc, clip_scale * db_enc, m.m_b_enc, m.v_b_enc, **options)
        adam_reference_(
            weights.W_dec, clip_scale * dW_dec, m.m_W_dec, m.v_W_dec, unit_norm=unit_norm, **options
        )
        return contribution
    if chosen == "triton":
        kernels = dispatch.triton("sparse_adam")
        figures = kernels.scalars(step, lr, beta1, beta2, clip_scale, l1)
        with on_device_of(x):
            contribution, _, _ = kernels.sparse_adam(
                weights, moments, None, values, code, x, grad, kernels.on_device(figures, x.device),
                (beta1, beta2), eps, unit_norm, l1_form == "decoder_norm",
            )  # fmt: skip
        return contribution
    contribution = torch.empty(weights.W_enc.shape[1])
    m = moments
    dispatch.native().sparse_adam(
        _addresses(weights.W_enc, m.m_W_enc, m.v_W_enc),
        _addresses(weights.W_dec, m.m_W_dec, m.v_W_dec),
        _addresses(weights.b_enc, m.m_b_enc, m.v_b_enc),
        *_inputs(values, code, x, grad, contribution),
        *weights.W_enc.shape,
        l1,
        l1_form == "decoder_norm",
        clip_scale,
        step,
        lr,
        beta1,
        beta2,
        eps,
        unit_norm,
        torch.get_num_threads(),
    )
    return contribution


def sparse_grad_norm(
    weights: Weights,
    values: Tensor,
    code: FeatureCode,
    x: Tensor,
    grad: Tensor,
    *,
    unit_norm: bool = True,
    l1: float = 0.0,
    l1_form: L1Form = "sum",
) -> tuple[float, Tensor]:
    """The squared norm of the gradients that `sparse_adam_` would apply, without applying them.

    Clipping by the global norm needs it before the update; it costs a second pass over the code.
    Parameters are those of `sparse_adam_`; returns (‖dW_enc‖² + ‖dW_dec‖² + ‖db_enc‖², the same
    contribution to db_dec [d]). With `unit_norm` the decoder's gradient is the projected one.
    """
    _check(weights, values, code, x, grad, l1, l1_form)
    check_flags(unit_norm=unit_norm)
    chosen = dispatch.implementation("sparse_adam", x)
    if chosen == "reference":
        gradients = _gradients(weights, values, code, x, grad, l1, l1_form, unit_norm)
        squared = sum(float(g.double().square().sum()) for g in gradients)
        return squared, -(gradients[2] @ weights.W_enc.detach())
    if chosen == "triton":
        kernels = dispatch.triton("sparse_adam")
        figures = kernels.on_device(kernels.scalars(1, 0.0, 0.0, 0.0, slope=l1), x.device)
        with on_device_of(x):
            contribution, _, squares = kernels.sparse_adam(
                weights, (None,) * 6, None, values, code, x, grad, figures,
                (0.0, 0.0), 0.0, unit_norm, l1_form == "decoder_norm", update=False,
            )  # fmt: skip
        return float(squares.double().sum()), contribution
    contribution = torch.empty(weights.W_enc.shape[1])
    squared = dispatch.native().sparse_grad_norm(
        _addresses(weights.W_enc, weights.W_dec),
        *_inputs(values, code, x, grad, contribution),
        *weights.W_enc.shape,
        l1,
        l1_form == "decoder_norm",
        unit_norm,
        torch.get_num_threads(),
    )
    return squared, contribution


@torch.no_grad()
def _gradients(
    weights: Weights,
    values: Tensor,
    code: FeatureCode,
    x: Tensor,
    grad: Tensor,
    l1: float,
    l1_form: L1Form,
    unit_norm: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, with dense gradients: (dW_enc, dW_dec, db_enc)."""
    W_enc, W_dec, b_enc = weights
    counts = code.feature_offsets.diff()
    feature = torch.repeat_interleave(torch.arange(len(b_enc), device=x.device), counts)
    a = values.flatten()[code.positions.long()]
    active = a > 0
    feature, row, a = feature[active], code.rows.long()[active], a[active]
    weight = W_dec.norm(dim=1) if l1_form == "decoder_norm" else torch.ones_like(b_enc)
    dpre = (grad[row] * W_dec[feature]).sum(1) + l1 * weight[feature]
    dW_enc = torch.zeros_like(W_enc).index_add_(0, feature, dpre[:, None] * x[row])
    dW_dec = torch.zeros_like(W_dec).index_add_(0, feature, a[:, None] * grad[row])
    db_enc = torch.zeros_like(b_enc).index_add_(0, feature, dpre)
    if l1_form == "decoder_norm":
        mass = torch.zeros_like(b_enc).index_add_(0, feature, a)
        dW_dec += (l1 * mass / weight.clamp_min(torch.finfo(weight.dtype).tiny))[:, None] * W_dec
    if unit_norm:
        dW_dec -= (dW_dec * W_dec).sum(1, keepdim=True) * W_dec
    return dW_enc, dW_dec, db_enc


def _check(
    weights: Weights,
    values: Tensor,
    code: FeatureCode,
    x: Tensor,
    grad: Tensor,
    l1: float,
    l1_form: str,
) -> None:
    if not isinstance(weights, Weights):
        raise bad("weights", type(weights).__name__, "Weights")
    if not isinstance(code, FeatureCode):
        raise bad("code", type(code).__name__, "a FeatureCode")
    check_numbers("a finite number >= 0", 0, math.inf, l1=l1)
    if not isinstance(l1_form, str) or l1_form not in ("decoder_norm", "sum"):
        raise bad("l1_form", l1_form, "'decoder_norm' or 'sum'")
    W_dec = weights.W_dec
    check_tensor("W_dec", W_dec, (None, None), torch.float32, torch.float64)
    (d_sae, d_in), dtype, device = W_dec.shape, W_dec.dtype, W_dec.device
    check_tensor("x", x, (None, d_in), dtype, device=device)
    shape = tuple(values.shape) if isinstance(values, Tensor) else ()
    N, entries = len(x), math.prod(shape)
    _check_one("W_enc", weights.W_enc, (d_sae, d_in), dtype, device)
    _check_one("W_dec", W_dec, (d_sae, d_in), dtype, device)
    _check_one("b_enc", weights.b_enc, (d_sae,), dtype, device)
    _check_one("x", x, (N, d_in), dtype, device)
    _check_one("grad", grad, (N, d_in), dtype, device)
    _check_one("values", values, shape, dtype, device)
    _check_one("code.feature_offsets", code.feature_offsets, (d_sae + 1,), torch.int64, device)
    # The kernel follows these as addresses.
    for name, places, end in (("rows", code.rows, N), ("positions", code.positions, entries)):
        _check_one(f"code.{name}", places, (entries,), torch.int32, device)
        if entries:
            low, high = (int(bound) for bound in places.aminmax())
            if low < 0 or high >= end:
                raise bad(f"code.{name}", [low, high], f"integers in [0, {end})")
    offsets = code.feature_offsets
    if offsets[0] != 0 or offsets[-1] != entries or bool((offsets.diff() < 0).any()):
        raise bad("code.feature_offsets", int(offsets[-1]), f"ascending from 0 to {entries}")


def _check_one(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    check_tensor(name, tensor, shape, dtype, device=device)
    if not tensor.is_contiguous():
        raise bad(f"{name}.stride", tensor.stride(), "a contiguous tensor")


def _addresses(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _inputs(
    values: Tensor, code: FeatureCode, x: Tensor, grad: Tensor, contribution: Tensor
) -> list[int]:
    return _addresses(values, *code, x, grad, contribution)


SPEC = OpSpec(
    "sparse_adam",
    "weight gradients of a code, straight into Adam",
    {
        "weights": "W_enc [F, d], W_dec [F, d], b_enc [F]",
        "values": "[N, k] or [nnz]",
        "x": "[N, d]",
        "grad": "[N, d]",
        "returns": "[d]",
    },
    (torch.float32, torch.float64),
    "none: a feature's sums run with tokens ascending, db_dec over fixed parts",
    lambda s: 6.0 * s.N * s.k * s.d + 24.0 * s.F * s.d,
    lambda s: 4.0 * (12 * s.F * s.d + 2 * s.N * s.d) + 12.0 * s.N * s.k,
)
