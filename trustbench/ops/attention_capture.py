"""attention_capture: attention, and what every head looks at, without the T × S matrix."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trustbench.errors import bad
from trustbench.ops import dispatch
from trustbench.ops.attention_masks import first_keys, visible
from trustbench.ops.registration import (
    DTYPE_CODE,
    address,
    check_flags,
    check_integer,
    check_numbers,
    check_tensor,
    register,
)
from trustbench.ops.spec import FLOATS, FULL, INT32, OpSpec, same, wide

_HALF = (*FLOATS, torch.float16)
_TINY = sys.float_info.min


class Attention(NamedTuple):
    """Attention's output, and statistics of every query's probabilities p_j over its visible keys j.

    The statistics are fp32 (fp64 for fp64 inputs) and carry no gradient. A query that sees no key has
    zeros everywhere, lse -inf (or its sink) and top_index -1.
    """

    out: Tensor  # [B, H, T, D], dtype of q
    lse: Tensor  # [B, H, T]: ln Σ_j exp(s_j), of the scaled (and capped) scores, with the sink
    entropy: Tensor  # [B, H, T], nats: -Σ_j p_j ln p_j
    distance: Tensor  # [B, H, T]: Σ_j p_j (t - j) / Σ_j p_j, tokens of mean look-back
    last: Tensor  # [B, H, T]: mass on the `last_n` keys up to the query itself
    top_p: Tensor  # [B, H, T, top]: largest first
    top_index: Tensor  # [B, H, T, top] int32, -1 where fewer keys are visible; ties: the lower index
    first: Tensor  # [B, H, T]: mass on the first token of the query's segment (the attention sink)
    self_: Tensor  # [B, H, T]: mass on the query's own position
    previous: Tensor  # [B, H, T]: mass on the position before it
    targets: Tensor  # [B, H, T, M]: mass on each of the positions asked for


def attention_capture(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    segments: Tensor | None = None,
    key_bias: Tensor | None = None,
    targets: Tensor | None = None,
    top: int = 1,
    last_n: int = 8,
) -> Attention:
    """softmax(q kᵀ · scale) v for grouped queries, with statistics of every row, in O(T) memory.

    p_j = exp(s_j - lse), lse by the online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867);
    the entropy is Σ p (lse - s). Query t stands at position t + S - T of the keys, as with a cache.
    Differentiable (once) in q, k, v, sinks and key_bias, through `out` alone.

    Parameters
    ----------
    q : Tensor [B, H, T, D], fp32, bf16, fp16 or fp64 (fp64 runs the reference)
    k, v : Tensor [B, H_kv, S, D], dtype of q; H a multiple of H_kv, query head h reads kv head
        h // (H / H_kv); S >= T
    causal : bool
        A query sees keys up to its own position.
    window : int or None
        It sees keys less than `window` positions away (Mistral's sliding window).
    scale : float or None
        None: 1 / sqrt(D).
    softcap : float or None
        s = softcap · tanh(s / softcap), before masks (Gemma 2).
    sinks : Tensor [H] or None
        One more logit a head in the softmax's denominator, which is no key (gpt-oss).
    segments : Tensor [B, S] int32 or None
        A query sees keys of its own segment only (packed documents); a negative segment is padding:
        it sees nothing and is not seen.
    key_bias : Tensor [B, H, S], fp32 or fp64, finite, or None
        s_tj += key_bias_j - key_bias_t, t being the query's own position, after softcap. A softmax
        without a sink forgets key_bias_t; it keeps lse small. ALiBi (Press et al. 2022,
        arXiv:2108.12409), slope · (j - t), is key_bias_j = slope · j.
    targets : Tensor [B, T, M] int32 or None
        Positions whose probability is asked for, -1 for none: induction targets, subject tokens.
    top : int
        How many of the largest probabilities to return; 0 to 16.
    last_n : int
        Of `last`.

    Raises
    ------
    InputError
        For wrong shapes or dtypes, head counts that do not divide, a window, softcap, top or last_n
        out of range, or targets outside the keys.

    Examples
    --------
    >>> q, k, v = torch.randn(1, 4, 32, 16), torch.randn(1, 2, 32, 16), torch.randn(1, 2, 32, 16)
    >>> found = tb.ops.attention_capture(q, k, v, window=8)
    >>> found.out.shape, found.entropy.shape
    (torch.Size([1, 4, 32, 16]), torch.Size([1, 4, 32]))
    >>> bool((found.last > 0.999).all())  # the mass on the last 8 keys is all of it
    True
    """
    B, H, T, D = _checked(q, k, v)
    S = k.shape[2]
    if window is not None:
        check_integer("window", window)
    check_integer("last_n", last_n)
    check_integer("top", top, 0)
    if top > 16:
        raise bad("top", top, "an integer in [0, 16]")
    for name, number in (("softcap", softcap), ("scale", scale)):
        if number is not None:
            check_numbers("a number > 0, or None", _TINY, math.inf, **{name: number})
    check_flags(causal=causal)
    if sinks is not None:
        check_tensor("sinks", sinks, (H,), *_HALF, device=q.device)
    if segments is not None:
        check_tensor("segments", segments, (B, S), torch.int32, device=q.device)
    if key_bias is not None:
        kinds = (torch.float32, torch.float64)
        check_tensor("key_bias", key_bias, (B, H, S), *kinds, device=q.device)
    if targets is not None:
        check_tensor("targets", targets, (B, T, None), torch.int32, device=q.device)
    position = torch.arange(S - T, S, dtype=torch.int32, device=q.device).expand(B, T)
    wanted = torch.stack([first_keys(segments, B, T, S, q.device), position, position - 1], 2)
    if targets is not None:
        wanted = torch.cat([wanted, targets], 2)
    found = _attention_capture(
        q, k, v, sinks, segments, key_bias, wanted, causal, window or 0,
        scale if scale is not None else D**-0.5, softcap or 0.0, top, last_n,
    )  # fmt: skip
    out, (lse, entropy, distance, last, top_p, top_index, mass) = (
        found[0],
        map(Tensor.detach, found[1:]),
    )
    first, self_, previous = mass[..., :3].unbind(-1)
    return Attention(
        out, lse, entropy, distance, last, top_p, top_index, first, self_, previous, mass[..., 3:]
    )


def _checked(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int, int]:
    check_tensor("q", q, (None, None, None, None), *_HALF)
    B, H, T, D = q.shape
    check_tensor("k", k, (B, None, None, D), q.dtype, device=q.device)
    check_tensor("v", v, tuple(k.shape), q.dtype, device=q.device)
    if not k.shape[1] or H % k.shape[1]:
        raise bad("k.shape", list(k.shape), f"a number of kv heads that divides the {H} of q")
    if k.shape[2] < T:
        raise bad("k.shape", list(k.shape), f"at least as many keys as the {T} queries")
    if not 1 <= D <= 256:
        raise bad("q.shape", list(q.shape), "a head dimension of 1 to 256")
    return B, H, T, D


def reference(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segments: Tensor | None,
    key_bias: Tensor | None, targets: Tensor, causal: bool, window: int, scale: float, softcap: float,
    top: int, last_n: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    (B, H, T, _), S = q.shape, k.shape[2]
    keys, values = (t.to(wide).repeat_interleave(H // k.shape[1], 1) for t in (k, v))
    at = torch.arange(S - T, S, device=q.device)
    s = scores(q.to(wide), keys, scale, softcap)
    if key_bias is not None:
        s = s + relative(key_bias.to(wide), at)
    seen = visible(at, S, causal, window, segments)
    s = s.masked_fill(~seen, -torch.inf)
    every = (
        s if sinks is None else torch.cat([s, sinks.to(wide).view(1, H, 1, 1).expand(B, H, T, 1)], 3)
    )
    lse = every.logsumexp(3) if every.shape[3] else s.new_full((B, H, T), -torch.inf)
    level = lse.nan_to_num(neginf=0.0)[..., None]
    p = (s - level).exp()
    total = p.sum(3)
    # Not lse Σ p - Σ p s: in rows with one large probability that would cancel.
    entropy = (p * (level - s).masked_fill(~seen, 0)).sum(3)
    away = (at[:, None] - torch.arange(S, device=q.device)).to(wide)
    distance = (p * away).sum(3) / total.clamp_min(torch.finfo(wide).tiny)
    last = (p * ((away >= 0) & (away < last_n))).sum(3)
    # A stable sort keeps the lower index first among equals.
    best, order = s.sort(dim=3, descending=True, stable=True)
    kept = min(top, S)
    top_p, top_index = s.new_zeros(B, H, T, top), torch.full((B, H, T, top), -1, dtype=torch.int32)
    there = best[..., :kept] > -torch.inf
    top_index = top_index.to(q.device)
    top_index[..., :kept] = order[..., :kept].to(torch.int32).masked_fill(~there, -1)
    top_p[..., :kept] = p.gather(3, order[..., :kept])
    key = targets[:, None].expand(B, H, T, targets.shape[2]).long()
    inside = (key >= 0) & (key < S)
    mass = p.gather(3, key.clamp(0, max(S - 1, 0))).masked_fill(~inside, 0) if S else key.to(wide)
    return (p @ values).to(q.dtype), lse, entropy, distance, last, top_p, top_index, mass


def scores(q: Tensor, k: Tensor, scale: float, softcap: float) -> Tensor:
    """q kᵀ · scale, capped: [..., T, S]."""
    s = q @ k.transpose(-1, -2) * scale
    return softcap * torch.tanh(s / softcap) if softcap else s


def relative(key_bias: Tensor, at: Tensor) -> Tensor:
    """What is added to the scores of queries at positions `at` [R]: [B, H, R, S]."""
    return key_bias[:, :, None] - key_bias[:, :, at, None]


def _run(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segments: Tensor | None,
    key_bias: Tensor | None, targets: Tensor, causal: bool, window: int, scale: float, softcap: float,
    top: int, last_n: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    S = k.shape[2]
    if targets.numel():
        low, high = (int(end) for end in targets.aminmax())
        if low < -1 or high >= max(S, 1):
            raise bad("targets", [low, high], f"positions in [-1, {S})")
    options = (causal, window, scale, softcap, top, last_n)
    chosen = dispatch.implementation("attention_capture", q)
    if chosen == "reference":
        return reference(q, k, v, sinks, segments, key_bias, targets, *options)
    q, k, v, targets = (t.contiguous() for t in (q, k, v, targets))
    segments = segments.contiguous() if segments is not None else None
    sinks, key_bias = (None if t is None else t.float().contiguous() for t in (sinks, key_bias))
    if chosen == "triton":
        kernel = dispatch.triton("attention_capture").attention_capture
        return kernel(q, k, v, sinks, segments, key_bias, targets, *options)
    dtype = q.dtype
    if dtype == torch.float16:
        q, k, v = q.float(), k.float(), v.float()
    (B, H, T, D), M = q.shape, targets.shape[2]
    out = torch.empty(B, H, T, D)
    lse, entropy, distance, last = (torch.empty(B, H, T) for _ in range(4))
    top_p, mass = torch.empty(B, H, T, top), torch.empty(B, H, T, M)
    top_index = torch.empty(B, H, T, top, dtype=torch.int32)
    results = (out, lse, entropy, distance, last, top_p, top_index, mass)
    dispatch.native().attention_capture(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), address(sinks), address(segments),
        address(key_bias), targets.data_ptr(), [t.data_ptr() for t in results],
        (B, H, k.shape[1], T, S, D, M), causal, window, scale, softcap, top, last_n,
        DTYPE_CODE[q.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return out.to(dtype), *results[1:]


def _fake(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segments: Tensor | None,
    key_bias: Tensor | None, targets: Tensor, causal: bool, window: int, scale: float, softcap: float,
    top: int, last_n: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows = [q.new_empty(q.shape[:3], dtype=wide) for _ in range(4)]
    top_p = q.new_empty(*q.shape[:3], top, dtype=wide)
    mass = q.new_empty(*q.shape[:3], targets.shape[2], dtype=wide)
    return torch.empty_like(q), *rows, top_p, top_p.to(torch.int32), mass


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, sinks, segments, key_bias, _, *options = inputs
    ctx.save_for_backward(q, k, v, sinks, segments, key_bias, output[0], output[1])
    ctx.options = options


_ROWS = 256  # queries whose probabilities are formed again at once


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    """dL/dq, dL/dk, dL/dv, dL/dsinks and dL/dkey_bias, some rows at a time: memory stays O(T)."""
    q, k, v, sinks, segments, key_bias, out, lse = ctx.saved_tensors
    causal, window, scale, softcap = ctx.options[:4]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    (B, H, T, D), (H_kv, S) = q.shape, k.shape[1:3]
    group = (B, H_kv, H // H_kv)
    q_, g, o = (t.to(wide).view(*group, T, D) for t in (q, grad.contiguous(), out))
    k_, v_ = (t.to(wide)[:, :, None] for t in (k, v))
    dq, dk, dv = torch.zeros_like(q_), torch.zeros_like(k_), torch.zeros_like(v_)
    dbias = None if key_bias is None else key_bias.new_zeros(B, H, S, dtype=wide)
    inner = (g * o).sum(-1)  # [B, H_kv, G, T]: Σ_j p_j dp_j
    for start in range(0, T, _ROWS):
        rows = slice(start, min(start + _ROWS, T))
        at = torch.arange(rows.start + S - T, rows.stop + S - T, device=q.device)
        s = scores(q_[..., rows, :], k_, scale, softcap)
        seen = visible(at, S, causal, window, segments)
        seen = seen if segments is None else seen[:, :, None]
        level = lse.view(*group, T)[..., rows, None].nan_to_num(neginf=0.0)
        bias = 0 if key_bias is None else relative(key_bias.to(wide), at).view(*s.shape)
        p = (s + bias - level).exp().masked_fill(~seen, 0)
        dv += (p.transpose(-1, -2) @ g[..., rows, :]).sum(2, keepdim=True)
        ds = p * (g[..., rows, :] @ v_.transpose(-1, -2) - inner[..., rows, None])
        if dbias is not None:
            dbias += ds.view(B, H, ds.shape[-2], S).sum(2)
            dbias[:, :, at] -= ds.view(B, H, ds.shape[-2], S).sum(3)
        if softcap:
            ds = ds * (1 - (s / softcap) ** 2)
        ds = ds * scale
        dq[..., rows, :] = ds @ k_
        dk += (ds.transpose(-1, -2) @ q_[..., rows, :]).sum(2, keepdim=True)
    dsinks = None
    if sinks is not None:
        on_sink = (sinks.to(wide).view(1, H, 1) - lse).exp()
        dsinks = -(on_sink * inner.reshape(B, H, T)).sum((0, 2)).to(sinks.dtype)
    dbias = None if dbias is None else dbias.to(key_bias.dtype)
    dq, dk, dv = dq.view_as(q).to(q.dtype), dk[:, :, 0].to(k.dtype), dv[:, :, 0].to(v.dtype)
    return dq, dk, dv, dsinks, None, dbias, *[None] * 7


_attention_capture = register(
    "attention_capture(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? segments,"
    " Tensor? key_bias, Tensor targets, bool causal, int window, float scale, float softcap, int top,"
    " int last_n)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
    _setup_context,
    _backward,
)

SPEC = OpSpec(
    "attention_capture",
    "out = softmax(q kᵀ · scale) v, and statistics of every row",
    {
        "q": ("B H T D", _HALF),
        "k": ("B H_kv S D", same("q")),
        "v": ("B H_kv S D", same("q")),
        "sinks": ("H", _HALF),
        "segments": ("B S", INT32),
        "key_bias": ("B H S", FULL),
        "targets": ("B T M", INT32),
    },
    {
        "out": ("B H T D", same("q")),
        **{name: ("B H T", wide("q")) for name in ("lse", "entropy", "distance", "last")},
        "top_p": ("B H T top", wide("q")),
        "top_index": ("B H T top", INT32),
        **{name: ("B H T", wide("q")) for name in ("first", "self_", "previous")},
        "targets": ("B H T M", wide("q")),
    },
    "largest probabilities: the lower index first; sums run over the keys in order",
    # One head of width d over N causal tokens.
    lambda s: 2.0 * s.N * s.N * s.d,
    lambda s: 4.0 * 4 * s.N * s.d,
)
