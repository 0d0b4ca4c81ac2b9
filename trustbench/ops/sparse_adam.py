"""The fused backward and optimiser step of an SAE: gradients go straight into Adam.

For feature i with entries (row n, value a > 0) and g = dL/dx_hat [N, d_out]:

    dpre      = <g[n], W_dec,i> + l1 · (‖W_dec,i‖ or 1)
    dW_dec,i  = Σ a g[n]  (+ l1 (Σ a) W_dec,i / ‖W_dec,i‖ in the decoder-norm form)
    dW_enc,i  = Σ dpre x[n]            db_enc,i = Σ dpre
    with unit_norm: dW_dec,i -= <dW_dec,i, W_dec,i> W_dec,i

then Adam (Kingma & Ba 2015) on the three, and with unit_norm W_dec,i /= ‖W_dec,i‖. A penalty φ(a) or
φ(a ‖W_dec,i‖) that is not linear gives every entry a push = dφ/da of its own, in the place of
l1 · (‖W_dec,i‖ or 1); in the decoder-norm form dW_dec,i then gains (Σ push a) W_dec,i / ‖W_dec,i‖².
A feature without entries has gradient zero; its moments decay, as in torch.optim.Adam. Neither
gradient is ever written to memory. The projection and the constraint are those of Bricken et al. 2023
(Towards Monosemanticity, appendix "Advice for training sparse autoencoders").
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from trustbench.defaults import BETA1, BETA2, EPS
from trustbench.errors import bad
from trustbench.ops import dispatch
from trustbench.ops.adam import (
    adam_reference_,
    check_adam,
    check_scalars,
    refuse_scalars,
    scalars_reference_,
)
from trustbench.ops.codes import FEATURE_CODE, FeatureCode
from trustbench.ops.parameters import MOMENTS, WEIGHTS, Moments, Weights
from trustbench.ops.registration import (
    address,
    check_flags,
    check_numbers,
    check_tensor,
    is_trusted,
    register,
)
from trustbench.ops.scalars import SLOPE, step_scalars
from trustbench.ops.spec import BF16, FP32, INT32, OpSpec, same

L1Form = Literal["decoder_norm", "sum"]
_SALT = 0x55555555  # the decoder's bf16 moments are rounded with other bits than the encoder's


def sparse_adam_(
    weights: Weights,
    values: Tensor,
    code: FeatureCode,
    x: Tensor,
    grad: Tensor,
    moments: Moments,
    *,
    step: int = 1,
    lr: float = 0.0,
    beta1: float = BETA1,
    beta2: float = BETA2,
    eps: float = EPS,
    unit_norm: bool = True,
    l1: float = 0.0,
    l1_form: L1Form = "sum",
    push: Tensor | None = None,
    clip_scale: float = 1.0,
    scalars: Tensor | None = None,
    copies: tuple[Tensor, Tensor] | None = None,
    fired: Tensor | None = None,
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
    x, grad : Tensor [R, d_in], [R, d_out], fp32 (with `scalars` also bf16)
        Encoder input (after b_dec was subtracted) and dL/dx_hat, of the rows that entries point at.
    moments : Moments
        Updated in place.
    step : int
        1 for the first update (Adam's bias correction).
    l1 : float
        Weight of Σ values (or Σ values · ‖W_dec,i‖) in the loss: λ / N for a mean over tokens.
    l1_form : "sum" or "decoder_norm"
        Whether the penalty, linear or not, is of values, or of values times ‖W_dec,i‖.
    push : Tensor, fp32, shape of values
        d penalty / d value of every entry, in the place of l1.
    clip_scale : float
        Every gradient is multiplied by it first (gradient clipping; see `sparse_grad_norm`).
    scalars : Tensor [6], fp32, on the device
        `step_scalars` in the place of step, lr, l1 and clip_scale, for the Triton kernels.
    copies : (Tensor [F, d_in], Tensor [F, d_out]), bf16
        With `scalars`: become the new W_enc and W_dec.
    fired : Tensor [F], int32
        Becomes each feature's number of entries > 0.

    Returns
    -------
    Tensor, fp32, [d_in]
        -(Σ_i db_enc,i W_enc,i) with the weights before the update: what the encoder's input
        x - b_dec adds to the gradient of b_dec. Not multiplied by `clip_scale`.
    """
    _check(weights, values, code, x, grad, l1, l1_form, push, scalars)
    if not isinstance(moments, Moments):
        raise bad("moments", type(moments).__name__, "Moments")
    check_numbers("a finite number >= 0", 0, math.inf, clip_scale=clip_scale)
    kinds = () if scalars is None else (torch.bfloat16,)
    for moment, weight in zip(moments, (w for w in weights for _ in range(2)), strict=True):
        _check_one("moments", moment, tuple(weight.shape), weight.device, weight.dtype, *kinds)
    check_adam(step, lr, beta1, beta2, eps, unit_norm)
    if copies is not None:
        if scalars is None or not isinstance(copies, tuple) or len(copies) != 2:
            raise bad("copies", type(copies).__name__, "two tensors, with scalars, or None")
        for copy, weight in zip(copies, weights, strict=False):
            _check_one("copies", copy, tuple(weight.shape), weight.device, torch.bfloat16)
    if fired is not None:
        _check_one("fired", fired, (len(weights.b_enc),), x.device, torch.int32)
    return _sparse_adam(
        *weights, *moments, *(copies or (None, None)), fired, values, *code, x, grad, push, scalars,
        step, lr, beta1, beta2, eps, unit_norm, l1, l1_form == "decoder_norm", clip_scale,
    )  # fmt: skip


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
    push: Tensor | None = None,
    scalars: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The squared norm of the gradients that `sparse_adam_` would apply, without applying them.

    Clipping by the global norm needs it before the update; it costs a second pass over the code.
    Parameters are those of `sparse_adam_`; returns (‖dW_enc‖² + ‖dW_dec‖² + ‖db_enc‖² as a scalar in
    fp64, the same contribution to db_dec [d_in]). With `unit_norm` the decoder's gradient is the
    projected one. Neither clip_scale nor the scale of `scalars` is in it.
    """
    _check(weights, values, code, x, grad, l1, l1_form, push, scalars)
    check_flags(unit_norm=unit_norm)
    return _sparse_grad_norm(
        *weights, values, *code, x, grad, push, scalars, unit_norm, l1, l1_form == "decoder_norm"
    )


@torch.no_grad()
def gradients(
    weights: Weights,
    values: Tensor,
    code: FeatureCode,
    x: Tensor,
    grad: Tensor,
    push: Tensor | None,
    l1: float,
    decoder_norm: bool,
    unit_norm: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, with dense gradients: (dW_enc, dW_dec, db_enc)."""
    W_enc, W_dec, b_enc = weights
    counts = code.feature_offsets.diff()
    nnz = int(code.feature_offsets[-1])
    feature = torch.repeat_interleave(torch.arange(len(b_enc), device=x.device), counts)
    place = code.positions[:nnz].long()
    a = values.flatten()[place]
    active = a > 0
    feature, row, a, place = feature[active], code.rows[:nnz].long()[active], a[active], place[active]
    x, grad = x.to(W_enc.dtype), grad.to(W_enc.dtype)
    norm = W_dec.norm(dim=1)
    weight = norm if decoder_norm else torch.ones_like(b_enc)
    pushed = l1 * weight[feature] if push is None else push.flatten()[place]
    dpre = (grad[row] * W_dec[feature]).sum(1) + pushed
    dW_enc = torch.zeros_like(W_enc).index_add_(0, feature, dpre[:, None] * x[row])
    dW_dec = torch.zeros_like(W_dec).index_add_(0, feature, a[:, None] * grad[row])
    db_enc = torch.zeros_like(b_enc).index_add_(0, feature, dpre)
    if decoder_norm:
        # d penalty / d‖W_dec,i‖ = Σ push a / ‖W_dec,i‖
        mass = torch.zeros_like(b_enc).index_add_(0, feature, pushed * a)
        safe = norm.clamp_min(torch.finfo(norm.dtype).tiny)
        dW_dec += (mass / safe / safe)[:, None] * W_dec
    if unit_norm:
        dW_dec -= (dW_dec * W_dec).sum(1, keepdim=True) * W_dec
    return dW_enc, dW_dec, db_enc


def _run(
    W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, m_W_enc: Tensor, v_W_enc: Tensor, m_W_dec: Tensor,
    v_W_dec: Tensor, m_b_enc: Tensor, v_b_enc: Tensor, copy_enc: Tensor | None,
    copy_dec: Tensor | None, fired: Tensor | None, values: Tensor, offsets: Tensor, rows: Tensor,
    positions: Tensor, x: Tensor, grad: Tensor, push: Tensor | None, scalars: Tensor | None,
    step: int, lr: float, beta1: float, beta2: float, eps: float, unit_norm: bool, l1: float,
    decoder_norm: bool, clip_scale: float,
) -> Tensor:  # fmt: skip
    weights, code = Weights(W_enc, W_dec, b_enc), FeatureCode(offsets, rows, positions)
    moments = Moments(m_W_enc, v_W_enc, m_W_dec, v_W_dec, m_b_enc, v_b_enc)
    chosen = dispatch.implementation("sparse_adam", x)
    if chosen == "triton":
        if scalars is None:
            scalars = step_scalars(
                step, lr, beta1, beta2, scale=clip_scale, slope=l1, device=x.device
            )
        copies = None if copy_enc is None else (copy_enc, copy_dec)
        through_x, counts, _ = dispatch.triton("sparse_adam").sparse_adam(
            weights, moments, copies, values, push, code, x, grad, scalars, (beta1, beta2), eps,
            unit_norm, decoder_norm,
        )  # fmt: skip
        if fired is not None:
            fired.copy_(counts)
        return through_x
    if fired is not None:
        fired.copy_(_count(values, code, len(b_enc)))
    if chosen == "reference":
        slope = l1 if scalars is None else float(scalars[SLOPE])
        inputs = (values, code, x, grad, push, slope, decoder_norm)
        found = gradients(weights, *inputs, unit_norm)
        through_x = -(found[2] @ W_enc.detach())
        copied = (copy_enc, copy_dec, None)
        for i, (weight, gradient) in enumerate(zip(weights, found, strict=True)):
            on_sphere = unit_norm and weight is W_dec
            m, v = moments[2 * i], moments[2 * i + 1]
            if scalars is not None:
                salt = _SALT if weight is W_dec else 0
                scalars_reference_(
                    weight, gradient, m, v, copied[i], scalars, beta1, beta2, eps, on_sphere, salt
                )
            else:
                adam_reference_(
                    weight, clip_scale * gradient, m, v,
                    step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, unit_norm=on_sphere,
                )  # fmt: skip
        return through_x
    refuse_scalars(scalars)
    through_x = torch.empty(W_enc.shape[1])
    dispatch.native().sparse_adam(
        _addresses(W_enc, m_W_enc, v_W_enc), _addresses(W_dec, m_W_dec, v_W_dec),
        _addresses(b_enc, m_b_enc, v_b_enc), _entries(values, push, code, x, grad),
        through_x.data_ptr(), (*W_enc.shape, W_dec.shape[1]), l1, decoder_norm, clip_scale, step, lr,
        beta1, beta2, eps, unit_norm, torch.get_num_threads(),
    )  # fmt: skip
    return through_x


def _run_norm(
    W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, values: Tensor, offsets: Tensor, rows: Tensor,
    positions: Tensor, x: Tensor, grad: Tensor, push: Tensor | None, scalars: Tensor | None,
    unit_norm: bool, l1: float, decoder_norm: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    weights, code = Weights(W_enc, W_dec, b_enc), FeatureCode(offsets, rows, positions)
    chosen = dispatch.implementation("sparse_adam", x)
    if chosen == "triton":
        if scalars is None:
            scalars = step_scalars(1, 0.0, 0.0, 0.0, slope=l1, device=x.device)
        through_x, _, squares = dispatch.triton("sparse_adam").sparse_adam(
            weights, (None,) * 6, None, values, push, code, x, grad, scalars, (0.0, 0.0), 0.0,
            unit_norm, decoder_norm, update=False,
        )  # fmt: skip
        return squares.double().sum(), through_x
    if chosen == "reference":
        slope = l1 if scalars is None else float(scalars[SLOPE])
        found = gradients(weights, values, code, x, grad, push, slope, decoder_norm, unit_norm)
        squares = torch.stack([g.double().square().sum() for g in found])
        return squares.sum(), -(found[2] @ W_enc.detach())
    refuse_scalars(scalars)
    through_x = torch.empty(W_enc.shape[1])
    squared = dispatch.native().sparse_grad_norm(
        _addresses(W_enc, W_dec), _entries(values, push, code, x, grad), through_x.data_ptr(),
        (*W_enc.shape, W_dec.shape[1]), l1, decoder_norm, unit_norm, torch.get_num_threads(),
    )  # fmt: skip
    return torch.tensor(squared, dtype=torch.float64), through_x


def _count(values: Tensor, code: FeatureCode, F: int) -> Tensor:
    """Entries > 0 of every feature."""
    nnz = int(code.feature_offsets[-1])
    active = values.flatten()[code.positions[:nnz].long()] > 0
    features = torch.arange(F, device=values.device)
    features = features.repeat_interleave(code.feature_offsets.diff(), output_size=nnz)
    return torch.bincount(features[active], minlength=F).to(torch.int32)


def _check(
    weights: Weights,
    values: Tensor,
    code: FeatureCode,
    x: Tensor,
    grad: Tensor,
    l1: float,
    l1_form: str,
    push: Tensor | None,
    scalars: Tensor | None,
) -> None:
    for name, given, kind in (("weights", weights, Weights), ("code", code, FeatureCode)):
        if not isinstance(given, kind):
            raise bad(name, type(given).__name__, kind.__name__)
    check_numbers("a finite number >= 0", 0, math.inf, l1=l1)
    if not isinstance(l1_form, str) or l1_form not in ("decoder_norm", "sum"):
        raise bad("l1_form", l1_form, "'decoder_norm' or 'sum'")
    W_enc, W_dec, b_enc = weights
    check_tensor("W_dec", W_dec, (None, None), torch.float32, torch.float64)
    (d_sae, d_out), dtype, device = W_dec.shape, W_dec.dtype, W_dec.device
    kinds = (dtype,) if scalars is None else (dtype, torch.bfloat16)
    shape = tuple(values.shape) if isinstance(values, Tensor) else ()
    entries = math.prod(shape)
    _check_one("W_enc", W_enc, (d_sae, None), device, dtype)
    _check_one("W_dec", W_dec, (d_sae, d_out), device, dtype)
    _check_one("b_enc", b_enc, (d_sae,), device, dtype)
    _check_one("x", x, (None, W_enc.shape[1]), device, *kinds)
    _check_one("grad", grad, (len(x), d_out), device, *kinds)
    _check_one("values", values, shape, device, dtype)
    if push is not None:
        _check_one("push", push, shape, device, dtype)
    check_scalars(scalars, device)
    _check_one("code.feature_offsets", code.feature_offsets, (d_sae + 1,), device, torch.int64)
    for name, places in (("rows", code.rows), ("positions", code.positions)):
        _check_one(f"code.{name}", places, (entries,), device, torch.int32)
    if not is_trusted():
        _check_places(code, len(x), entries)


def _check_places(code: FeatureCode, N: int, entries: int) -> None:
    """The kernels follow these as addresses."""
    offsets = code.feature_offsets
    nnz = int(offsets[-1])
    if offsets[0] != 0 or not 0 <= nnz <= entries or bool((offsets.diff() < 0).any()):
        raise bad("code.feature_offsets", nnz, f"ascending from 0 to at most {entries}")
    for name, places, end in (("rows", code.rows, N), ("positions", code.positions, entries)):
        if nnz:
            low, high = (int(bound) for bound in places[:nnz].aminmax())
            if low < 0 or high >= end:
                raise bad(f"code.{name}", [low, high], f"integers in [0, {end})")


def _check_one(
    name: str, tensor: Tensor, shape: tuple[int | None, ...], device: torch.device, *dtypes: Any
) -> None:
    check_tensor(name, tensor, shape, *dtypes, device=device)
    if not tensor.is_contiguous():
        raise bad(f"{name}.stride", tensor.stride(), "a contiguous tensor")


def _addresses(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _entries(
    values: Tensor, push: Tensor | None, code: FeatureCode, x: Tensor, grad: Tensor
) -> list[int]:
    return [values.data_ptr(), address(push), *_addresses(*code, x, grad)]


_sparse_adam = register(
    "sparse_adam(Tensor(a!) W_enc, Tensor(b!) W_dec, Tensor(c!) b_enc, Tensor(d!) m_W_enc,"
    " Tensor(e!) v_W_enc, Tensor(f!) m_W_dec, Tensor(g!) v_W_dec, Tensor(h!) m_b_enc,"
    " Tensor(i!) v_b_enc, Tensor(j!)? copy_enc, Tensor(k!)? copy_dec, Tensor(l!)? fired,"
    " Tensor values, Tensor offsets, Tensor rows, Tensor positions, Tensor x, Tensor grad,"
    " Tensor? push, Tensor? scalars, int step, float lr, float beta1, float beta2, float eps,"
    " bool unit_norm, float l1, bool decoder_norm, float clip_scale) -> Tensor",
    _run,
    lambda W_enc, *_: W_enc.new_empty(W_enc.shape[1]),
)
_sparse_grad_norm = register(
    "sparse_grad_norm(Tensor W_enc, Tensor W_dec, Tensor b_enc, Tensor values, Tensor offsets,"
    " Tensor rows, Tensor positions, Tensor x, Tensor grad, Tensor? push, Tensor? scalars,"
    " bool unit_norm, float l1, bool decoder_norm) -> (Tensor, Tensor)",
    _run_norm,
    lambda W_enc, *_: (W_enc.new_empty((), dtype=torch.float64), W_enc.new_empty(W_enc.shape[1])),
)

SPEC = OpSpec(
    "sparse_adam",
    "weight gradients of a code, straight into Adam",
    WEIGHTS
    | {"values": ("N k or nnz", same("weights.W_dec"))}
    | FEATURE_CODE
    | {"x": ("R d_in", same("weights.W_dec")), "grad": ("R d_out", same("weights.W_dec"))}
    | MOMENTS
    | {"push": ("N k or nnz", same("weights.W_dec")), "scalars": ("6", FP32)}
    | {"copies.W_enc": ("F d_in", BF16), "copies.W_dec": ("F d_out", BF16)}
    | {"fired": ("F", INT32)},
    {"db_dec": ("d_in", same("weights.W_dec"))},
    "none: a feature's sums run with tokens ascending, db_dec over fixed parts",
    lambda s: 6.0 * s.N * s.k * s.d + 24.0 * s.F * s.d,
    lambda s: 4.0 * (12 * s.F * s.d + 2 * s.N * s.d) + 12.0 * s.N * s.k,
)
