"""capture(): what every head of every layer looks at, in any transformers model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trustbench.attention.head_attention import AttentionFiles, HeadAttention, Layer
from trustbench.attention.inline import interpreted
from trustbench.attention.linear import linear_layers, recorded
from trustbench.attention.masks import Seen, seen_mask
from trustbench.attention.patterns import Form, patterns
from trustbench.attention.patterns import by_distance as by_distance_of
from trustbench.attention.patterns import divergence as divergence_of
from trustbench.errors import InputError, bad
from trustbench.models.attention_taps import tapped
from trustbench.models.hook_points import decoder_layers
from trustbench.models.inline_attention import Call, called, inline_modules
from trustbench.ops import Attention, attention_capture
from trustbench.ops.attention_masks import visible_counts

_NAME = "trustbench_capture"


class _Run(NamedTuple):
    """The capture under way."""

    names: dict[int, str]  # id of a module: its path
    options: dict[str, Any]
    rows: Tensor | None
    by_distance: bool
    divergence: bool
    order: Tensor | None  # [T]: keys are permuted so, for a null
    keep: Callable[[str, Layer], None]


_running: ContextVar[_Run] = ContextVar("trustbench_attention")


@torch.no_grad()
def capture(
    model: Any,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    targets: Tensor | None = None,
    top: int = 1,
    last_n: int = 8,
    rows: Tensor | None = None,
    by_distance: bool = False,
    divergence: bool = False,
    shuffled: int | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Mapping[str, Layer]:
    """Run a model, as it is, and capture the attention of all layers and heads in O(T) memory.

    Parameters
    ----------
    model
        A transformers causal LM, unmodified: any family whose attention goes through transformers'
        AttentionInterface, or computes softmax(q kᵀ · scale + a bias of each key) v in line, as
        GPT-Neo, Falcon, BLOOM and MPT do.
    input_ids : Tensor [B, T]
    attention_mask : Tensor [B, T] or None
        1 for tokens, 0 for padding. Padding queries have zeros everywhere.
    position_ids : Tensor [B, T] or None
        Starting again at 0 for every document of a packed row.
    targets : Tensor [B, T, M] int32 or None
    top, last_n : int
        See trustbench.ops.attention_capture.
    rows : Tensor [R] int64 or None
        Queries whose whole patterns are wanted.
    by_distance, divergence : bool
        The mean pattern by relative distance; how much the heads' patterns differ. Each is another
        pass over all scores.
    shuffled : int or None
        A seed: every statistic is that of keys permuted over the positions, for a null of the same
        model; ALiBi, which is of the positions, stays. The model itself runs on as it is.

    out : path or None
        A directory: every layer is written there as soon as it is captured, and read back from it
        when it is asked for (AttentionFiles), instead of being kept.

    Returns
    -------
    {path of the layer's attention module: HeadAttention or LinearAttention}
        In the order of the layers. LinearAttention for Gated DeltaNet layers (Qwen3-Next, Qwen3.5),
        which have no pattern.

    Raises
    ------
    InputError
        For wrong shapes, or a layer whose attention was not seen.
    NotImplementedError
        Naming the layer, for masks, biases or head sizes that the kernels do not have.
    """
    if input_ids.dim() != 2:
        raise bad("input_ids.shape", list(input_ids.shape), "[B, T]")
    if rows is not None and not bool(((rows >= 0) & (rows < input_ids.shape[1])).all()):
        raise bad("rows", rows.tolist(), f"queries in [0, T={input_ids.shape[1]})")
    for name, given in (("attention_mask", attention_mask), ("position_ids", position_ids)):
        if given is not None and given.shape != input_ids.shape:
            raise bad(f"{name}.shape", list(given.shape), f"{list(input_ids.shape)}")
    _register()
    names = {id(module): path for path, module in model.named_modules()}
    order = None
    if shuffled is not None:
        draws = torch.Generator().manual_seed(shuffled)
        order = torch.randperm(input_ids.shape[1], generator=draws).to(model.device)
    options = {"targets": targets, "top": top, "last_n": last_n}
    wanted = None if rows is None else rows.to(model.device)
    kept: dict[str, Layer] = {}
    written = None if out is None else AttentionFiles(out)
    keep = kept.__setitem__ if written is None else written.write
    run = _Run(names, options, wanted, by_distance, divergence, order, keep)
    before = model.config._attn_implementation
    token = _running.set(run)
    try:
        _set_implementation(model, _NAME)
        real = None if attention_mask is None else attention_mask.bool()
        with recorded(linear_layers(model), keep, real), called(model, tapped(_inline)):
            optional = {"attention_mask": attention_mask, "position_ids": position_ids}
            model.base_model(
                input_ids=input_ids.to(model.device),
                use_cache=False,
                **{name: given for name, given in optional.items() if given is not None},
            )
    finally:
        _running.reset(token)
        _set_implementation(model, before)
    found: Mapping[str, Layer] = kept if written is None else written
    path, layers = decoder_layers(model)
    for i in range(len(layers)):
        if not any(name.startswith(f"{path}.{i}.") for name in found):
            raise InputError(
                f"{path}.{i}: its attention was not seen; it does not go through transformers'"
                " AttentionInterface, multiplies no queries and keys, and is no Gated DeltaNet"
            )
    return found


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, seen_mask)


def _set_implementation(model: Any, name: str) -> None:
    if inline_modules(model):  # transformers lets nobody choose, and asks only for the mask
        model.config._attn_implementation = name
    else:
        model.set_attn_implementation(name)


def _inline(call: Call) -> Tensor:
    """The same of an attention computed in line."""
    try:
        q, k, v, seen, scale, key_bias = interpreted(call)
    except NotImplementedError as error:
        raise NotImplementedError(f"{_running.get().names[id(call.module)]}: {error}") from error
    out, _ = _attention(call.module, q, k, v, seen, scale, key_bias=key_bias)
    return out.transpose(1, 2).to(call.v.dtype)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    key_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for a layer: its attention, captured."""
    run = _running.get()
    name = run.names[id(module)]
    unknown = {k for k in ("position_bias", "head_mask") if others.get(k) is not None}
    if not isinstance(attention_mask, Seen) or unknown or dropout:
        what = ", ".join(sorted(unknown)) or ("dropout" if dropout else "its kind of mask")
        raise NotImplementedError(f"{name}: attention capture does not support {what}")
    if key.shape != value.shape or query.shape[-1] > 256:
        raise NotImplementedError(
            f"{name}: attention capture needs keys and values of one head size, at most 256;"
            f" they are {list(key.shape)} and {list(value.shape)}"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    form = Form(*attention_mask, scaling, softcap, key_bias)
    options = form._asdict() | run.options
    try:
        found = attention_capture(query, key, value, sinks=s_aux, **options)
        out = found.out
        if run.order is not None:
            key = key[:, :, run.order]
            found = attention_capture(query, key, value, sinks=s_aux, **options)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    run.keep(name, _kept(found, query, key, form, run))
    return out.transpose(1, 2).contiguous(), None


def _kept(found: Attention, query: Tensor, key: Tensor, form: Form, run: _Run) -> HeadAttention:
    (B, _, T, _), S = query.shape, key.shape[2]
    given = query, key, found.lse, form
    within, between = divergence_of(*given) if run.divergence else (None, None)
    statistics = {name: value for name, value in found._asdict().items() if name != "out"}
    return HeadAttention(
        **statistics,
        visible=visible_counts(B, T, S, form.causal, form.window, form.segments, query.device),
        pattern=None if run.rows is None else patterns(*given, run.rows),
        by_distance=by_distance_of(*given) if run.by_distance else None,
        within=within,
        between=between,
    )
