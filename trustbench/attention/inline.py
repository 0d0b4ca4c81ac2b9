"""Attention that a model computes in line, as attention_capture takes it: mask, scale and bias."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from trustbench.attention.masks import Seen
from trustbench.models.inline_attention import Call, Slot, Step

_UNCHANGED = ("to", "float", "view", "reshape", "contiguous")  # only type and shape
_HIDDEN = torch.finfo(torch.float16).min  # scores of keys that are not seen are at most this


class Inline(NamedTuple):
    """What attention_capture is called with."""

    q: Tensor  # [B, H, T, D]
    k: Tensor  # [B, H_kv, S, D], dtype of q
    v: Tensor  # [B, H_kv, S, D], dtype of q
    seen: Seen
    scale: float
    key_bias: Tensor | None  # [B, H, S]


def interpreted(call: Call) -> Inline:
    """The model's own steps from q kᵀ to p v, understood.

    Raises
    ------
    NotImplementedError
        For a step that attention_capture has no word for.
    """
    (B, H, _, _), S = call.q.shape, call.k.shape[2]
    wide = torch.promote_types(call.v.dtype, torch.float32)
    seen: Seen | None = None
    allowed: list[Tensor] = []
    scale, bias, normal = 1.0, None, False

    def per_key(added: Tensor, step: Step) -> Tensor:
        if added.dim() < 2 or added.shape[-2] != 1:
            raise NotImplementedError("attention capture: a bias of every query and key")
        return added.to(wide).expand(*step.shape[:-2], 1, S).reshape(B, H, S)

    for step in call.steps[:-1]:
        given = [a for a in (*step.args, *step.kwargs.values()) if not isinstance(a, Slot)]
        name, other = step.name, given[0] if given else None
        if name in _UNCHANGED or (name == "dropout" and not _drops(step)):
            continue
        if normal:
            raise _unknown(step)
        if name == "baddbmm":
            scale = float(step.kwargs.get("alpha", 1))
            bias = per_key(step.args[0], step) * step.kwargs.get("beta", 1)
        elif name in ("mul", "truediv", "div") and (number := _number(other)) is not None:
            factor = number if name == "mul" else 1 / number
            scale, bias = scale * factor, None if bias is None else bias * factor
        elif name == "add" and isinstance(other, Seen):
            seen = other
        elif name == "add" and isinstance(other, Tensor):
            bias = per_key(other, step) + (0 if bias is None else bias)
        elif name in ("where", "masked_fill") and len(given) == 2 and float(given[1]) <= _HIDDEN:
            if isinstance(other, Seen):
                seen = other
            else:
                allowed.append(given[0] if name == "where" else ~given[0])
        elif name == "softmax" and step.kwargs.get("dim", other) in (-1, len(step.shape) - 1):
            normal = True
        elif name not in ("matmul", "bmm"):
            raise _unknown(step)
    found = seen or Seen(False, None, None)
    for mask in allowed:
        found = found.narrowed(mask)
    return Inline(*_operands(call), found, scale, bias)


def _unknown(step: Step) -> NotImplementedError:
    return NotImplementedError(f"attention capture: scores in a step of `{step.name}`")


def _number(a: Any) -> float | None:
    one = isinstance(a, int | float) or (isinstance(a, Tensor) and a.numel() == 1)
    return float(a) if one else None


def _drops(step: Step) -> bool:
    given = dict(zip(("input", "p", "training"), step.args, strict=False)) | step.kwargs
    return bool(given.get("training", True)) and given.get("p", 0.5) > 0


def _operands(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of one dtype, and each kv head once."""
    q, k, v = call.q, call.k, call.v
    H, heads = q.shape[1], getattr(call.module, "num_kv_heads", q.shape[1])
    if heads < k.shape[1] == H and H % heads == 0:  # Falcon repeats a group's for each of its heads
        few = [t[:, :: H // heads] for t in (k, v)]
        if all(
            torch.equal(t.repeat_interleave(H // heads, 1), whole)
            for t, whole in zip(few, (k, v), strict=True)
        ):
            k, v = few
    if q.dtype != v.dtype:  # GPT-Neo multiplies in fp32 what it has in less
        narrow = [t.to(v.dtype) for t in (q, k)]
        same = all(torch.equal(n.to(t.dtype), t) for n, t in zip(narrow, (q, k), strict=True))
        q, k = narrow if same else (q, k)
    return q, k, v.to(q.dtype)
