"""Names of the places in a model whose activations can be read, replaced and trained on.

A hook point is named like the path of its module: `gpt_neox.layers.3` is what that layer puts out,
`gpt_neox.layers.3.input` what goes into it, `gpt_neox.layers.3.attention.q` its queries. Two other
spellings are understood: relative to the base model as sparsify has it (`layers.3`), and
TransformerLens's where it has the same activations (`blocks.3.hook_resid_post`).

    site        shape            what it is
    resid_pre   [B, T, d]        the residual stream before a layer
    attn_in     [B, T, d]        what the attention block reads: the stream after its norm
    q           [B, T, H D]      queries, after rotary and norm where the model has them (and, in
                                 OPT and XGLM, after the scale)
    k, v        [B, T, H_kv D]   keys and values of this forward's tokens, likewise
    head_out    [B, T, H D]      every head's output, side by side: the output projection's input
    attn_out    [B, T, d]        what the attention block puts out (before a norm behind it)
    mlp_in      [B, T, d]        what the MLP reads: the stream after its norm
    mlp_hidden  [B, T, d_ff]     the down projection's input (after the gate); no MoE layer has it
    mlp_out     [B, T, d]        what the MLP puts out (before a norm behind it)
    resid_post  [B, T, d]        the residual stream after a layer

Heads lie side by side in the last dimension, so that every site can be trained on as it is:
`acts.unflatten(-1, (H, D))` is the view by head. BLOOM's and MPT's blocks add the stream to their
output; there attn_out and mlp_out are the output of their last projection, before that.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

from torch import nn

from trustbench.errors import InputError, bad

Site = Literal[
    "resid_post", "resid_pre", "attn_in", "q", "k", "v", "head_out", "attn_out", "mlp_in",
    "mlp_hidden", "mlp_out",
]  # fmt: skip
Layers = str | Sequence[int | str]
Side = Literal["input", "output", "q", "k", "v"]

_ATTENTION = ("attention", "attn", "self_attn", "self_attention", "linear_attn")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")  # the output projection
_LENS = {"head_out": "attn.hook_z", "v": "attn.hook_v", "mlp_hidden": "mlp.hook_post"}


class HookPoint(NamedTuple):
    """One place: the module, and which of its tensors is meant."""

    name: str  # module path, with ".input", ".q", ".k" or ".v" for what is not its output
    module: nn.Module
    side: Side
    layer: int
    site: Site
    aliases: tuple[str, ...]
    block: nn.Module  # the decoder layer


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The path and the list of a causal LM's decoder layers."""
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return path, module
    raise InputError(f"{type(model).__name__}: no list of {depth} decoder layers found in it")


def all_hook_points(model: Any) -> list[HookPoint]:
    """Every hook point of the model, layer by layer."""
    path, layers = decoder_layers(model)
    base = getattr(model, "base_model_prefix", "")
    width = model.config.get_text_config().hidden_size
    rotary = any("Rotary" in type(module).__name__ for module in model.modules())
    # TransformerLens's hook_q and hook_k stand before the rotation.
    lens = _LENS | {s: f"attn.hook_rot_{s}" if rotary else f"attn.hook_{s}" for s in ("q", "k")}
    found = []
    for i, layer in enumerate(layers):
        for site, child, module, side in _places(layer, width):
            name = ".".join([path, str(i), *filter(None, [child])])
            name += "" if side == "output" else f".{side}"
            # TransformerLens has nothing between a norm and its attention block.
            there = lens.get(site, f"hook_{site}")
            aliases = [f"blocks.{i}.{there}"] if site != "attn_in" else []
            if base and name.startswith(f"{base}."):
                aliases.append(name.removeprefix(f"{base}."))
            found.append(HookPoint(name, module, side, i, site, tuple(aliases), layer))
    return found


def resolve_hook_points(
    model: Any, layers: Layers = "all", site: Site = "resid_post"
) -> list[HookPoint]:
    """The hook points that a user means.

    Parameters
    ----------
    layers
        "all", or a list of layer numbers (with `site`) and hook point names in any spelling.
    site
        What "all" and layer numbers mean; see the table above.

    Raises
    ------
    InputError
        For an unknown layer or name (it suggests the nearest), or a layer that lacks the site.
    """
    if site not in get_args(Site):
        raise bad("site", site, f"one of {', '.join(get_args(Site))}")
    points = all_hook_points(model)
    at_site = {point.layer: point for point in points if point.site == site}
    if not at_site:
        raise bad("site", site, f"one that {type(model).__name__} has")
    depth = 1 + max(point.layer for point in points)
    if isinstance(layers, str):
        layers = list(range(depth)) if layers == "all" else [layers]
    by_name = {spelling: point for point in points for spelling in (point.name, *point.aliases)}
    chosen: list[HookPoint] = []
    for entry in layers:
        if isinstance(entry, str) and entry.isdigit():
            entry = int(entry)
        if isinstance(entry, int):
            if not 0 <= entry < depth:
                raise bad("layers", entry, f"layer numbers in [0, {depth - 1}], names, or 'all'")
            if entry not in at_site:
                raise bad("layers", entry, f"layers with {site}: {', '.join(map(str, at_site))}")
            point = at_site[entry]
        elif entry in by_name:
            point = by_name[entry]
        else:
            near = difflib.get_close_matches(entry, by_name, n=3)
            hint = f" (near: {', '.join(near)})" if near else ""
            raise bad("layers", entry, f"'all', layer numbers or hook point names{hint}")
        if all(point.name != other.name for other in chosen):
            chosen.append(point)
    if not chosen:
        raise bad("layers", layers, "at least one layer")
    return chosen


_Place = tuple[Site, str, nn.Module, Side]


def _places(layer: nn.Module, width: int) -> Iterator[_Place]:
    """(site, path in the layer, module, side) of a layer's hook points, as data passes them."""
    yield "resid_pre", "", layer, "input"
    yield from _attention_places(layer)
    yield from _mlp_places(layer, width)
    yield "resid_post", "", layer, "output"


def _attention_places(layer: nn.Module) -> Iterator[_Place]:
    name, attention = _child(layer, _ATTENTION)
    if attention is None:
        return
    yield "attn_in", name, attention, "input"
    if name != "linear_attn":
        yield "q", name, attention, "q"
        yield "k", name, attention, "k"
        yield "v", name, attention, "v"
    for path, module in attention.named_modules(prefix=name):
        if path.rpartition(".")[2] in _ATTENTION_OUT and _features(module):
            yield "head_out", path, module, "input"
            if _adds_the_stream(attention):
                yield "attn_out", path, module, "output"
                return
            break
    if not _adds_the_stream(attention):
        yield "attn_out", name, attention, "output"


def _mlp_places(layer: nn.Module, width: int) -> Iterator[_Place]:
    name, mlp = _child(layer, _MLP)
    prefix = f"{name}." if name else ""
    linears = {
        prefix + path: (module, features)
        for path, module in (layer if mlp is None else mlp).named_children()
        if (features := _features(module))
    }
    # The down projection: the last that leads (from another width, if one does) to the stream's.
    downs = [path for path, (_, (_, out)) in linears.items() if out == width]
    downs = [path for path in downs if linears[path][1][0] != width] or downs[-1:]
    down = linears[downs[-1]][0] if downs else None
    if mlp is not None:
        yield "mlp_in", name, mlp, "input"
    elif len(linears) > 1 and down is not None:  # OPT: the layer itself is the MLP
        yield "mlp_in", next(iter(linears)), next(iter(linears.values()))[0], "input"
    else:
        return
    if down is not None:
        yield "mlp_hidden", downs[-1], down, "input"
    if mlp is not None and not _adds_the_stream(mlp):
        yield "mlp_out", name, mlp, "output"
    elif down is not None:
        yield "mlp_out", downs[-1], down, "output"


def _child(layer: nn.Module, names: Sequence[str]) -> tuple[str, nn.Module | None]:
    for name in names:
        module = getattr(layer, name, None)
        if isinstance(module, nn.Module):
            return name, module
    return "", None


def _features(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer, GPT-2's Conv1D included; None for other modules."""
    for into, out in (("in_features", "out_features"), ("nx", "nf")):
        sizes = getattr(module, into, None), getattr(module, out, None)
        if isinstance(sizes[0], int) and isinstance(sizes[1], int):
            return sizes[0], sizes[1]
    return None


def _adds_the_stream(module: nn.Module) -> bool:
    return "residual" in inspect.signature(module.forward).parameters
