"""Names of the places in a model whose activations can be captured.

A hook point is named like the path of its module: `gpt_neox.layers.3` is what that layer puts out,
`gpt_neox.layers.3.input` what goes into it. Two other spellings are understood: relative to the
base model as sparsify has it (`layers.3`), and TransformerLens's (`blocks.3.hook_resid_post`).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from torch import nn

from trustbench.errors import InputError, bad

Site = Literal["resid_post", "resid_pre", "mlp_in", "mlp_out", "attn_out"]
Layers = str | Sequence[int | str]

_ATTENTION = ("attention", "attn", "self_attn", "linear_attn")
_MLP = ("mlp", "feed_forward")


class HookPoint(NamedTuple):
    """One place: the module, and whether its input or its output is meant."""

    name: str  # module path, with ".input" for an input
    module: nn.Module
    side: Literal["input", "output"]
    layer: int
    site: Site
    aliases: tuple[str, ...]


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
    found = []
    for i, layer in enumerate(layers):
        parts: dict[Site, tuple[str, nn.Module | None]] = {
            "resid_pre": ("", layer),
            "attn_out": _child(layer, _ATTENTION),
            "mlp_in": _child(layer, _MLP),
            "mlp_out": _child(layer, _MLP),
            "resid_post": ("", layer),
        }
        for site, (child, module) in parts.items():
            if module is None:
                continue
            side: Literal["input", "output"] = (
                "input" if site in ("resid_pre", "mlp_in") else "output"
            )
            name = f"{path}.{i}" + (f".{child}" if child else "")
            name += ".input" if side == "input" else ""
            aliases = [f"blocks.{i}.hook_{site}"]
            if base and name.startswith(f"{base}."):
                aliases.append(name.removeprefix(f"{base}."))
            found.append(HookPoint(name, module, side, i, site, tuple(aliases)))
    return found


def resolve_hook_points(
    model: Any, layers: Layers = "all", site: Site = "resid_post"
) -> list[HookPoint]:
    """The hook points that a user means.

    Parameters
    ----------
    layers
        "all", or a list of layer numbers (with `site`) and hook point names in any spelling.

    Raises
    ------
    InputError
        For an unknown layer or name (it suggests the nearest), or a site that the model lacks.
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
            if entry not in at_site:
                raise bad("layers", entry, f"layer numbers in [0, {depth - 1}], names, or 'all'")
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


def _child(layer: nn.Module, names: Sequence[str]) -> tuple[str, nn.Module | None]:
    for name in names:
        module = getattr(layer, name, None)
        if isinstance(module, nn.Module):
            return name, module
    return "", None
