"""One way into a model: read and replace activations at any hook points, in one forward."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trustbench.errors import InputError, bad
from trustbench.models.attention_taps import Tap, attention_tapped
from trustbench.models.hook_points import HookPoint, resolve_hook_points

Function = Callable[[Tensor], Tensor]


@contextmanager
def hooked(
    model: Any,
    replace: Mapping[str | HookPoint, Function] | None = None,
    *,
    read: Iterable[str | HookPoint] = (),
    stop: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Inside the block, read and replace activations in every forward of a model.

        with hooked(model, {"layers.3": steer}, read=["blocks.5.attn.hook_z"]) as acts:
            logits = model(input_ids).logits
        acts["blocks.5.attn.hook_z"]                                                 # [B, T, H D]

    Parameters
    ----------
    model
        A transformers causal LM. It is left as it was, also after an exception.
    replace : {hook point: function}
        The model goes on with `function(acts)` in the place of acts [B, T, d]: a tensor of the same
        shape, on the same device (its dtype is made the same). See trustbench.models.hook_points for
        names and shapes.
    read : hook points
        Whose activations are wanted.
    stop : bool
        End the forward, and with it the block, as soon as every point named was seen: what comes
        later is not computed, and the forward returns nothing.

    Yields
    ------
    acts : {hook point: Tensor [B, T, d]}
        What the last forward had there, by the names as they were given (a HookPoint's by its own):
        the model's tensor itself, not a copy and not detached. At a point that is replaced, too, it
        is what the replacement gave.

    Notes
    -----
    - Gradients flow through what is read and what is put in; `torch.no_grad()` is the caller's to
      say. The gradient of an input is that of its own module alone, where others read the same.
      With frozen weights a gradient needs a place to begin: replace a point by
      `lambda x: x.detach().requires_grad_()`, and read it.
    - Under a KV cache every forward sees its own tokens: after the prompt T = 1. Replaced keys and
      values are what the cache keeps.
    - Padding is not special: rows are as the model has them, on whichever side they are padded.
    - Blocks nest. At one point an outer block's function runs first, and the outer block reads its
      own result.
    - The hooks are the model's, so two threads cannot hook one model each in its own way.

    Raises
    ------
    InputError
        For an unknown hook point, a function that changes the shape, a point that no forward came to
        or one came to twice (layers that share a module), or activations that were changed in place
        after they were read.
    NotImplementedError
        For q, k or v of a layer from which they cannot be had.
    """
    acts: dict[str, Tensor] = {}
    places, order = _places(model, dict(replace or {}), list(read))
    forward = _Forward(places, order, acts, stop)
    with ExitStack() as hooks:
        forward.attach(model, hooks)
        try:
            yield acts
        except _Stopped as stopped:
            if stopped.forward is not forward:
                raise
    if missing := [place.point.name for place in forward.places if not place.seen]:
        raise InputError(f"hook points {missing}: their modules were not run by the model")


class ActivationCapture:
    """Reads hook points of a model, with no more of a forward than it takes, and no gradients.

    Parameters
    ----------
    model
        A transformers causal LM.
    hook_points : sequence of HookPoint
        From `resolve_hook_points`.
    """

    def __init__(self, model: Any, hook_points: Sequence[HookPoint]) -> None:
        self.model = model
        self.hook_points = list(hook_points)

    @torch.no_grad()
    def run(self, input_ids: Tensor) -> dict[str, Tensor]:
        """{name: activations [B, T, d]} for input_ids [B, T], on the model's device.

        The forward ends after the last needed module; later layers, the final norm and the LM head
        are not computed. Rows are padded on the right, which causal attention never looks at.
        """
        with hooked(self.model, read=self.hook_points, stop=True) as acts:
            self.model.base_model(input_ids=input_ids.to(self.model.device), use_cache=False)
        return acts


class _Stopped(Exception):
    """Ends a forward once every point was seen."""

    def __init__(self, forward: _Forward) -> None:
        self.forward = forward


class _Place:
    """A hook point in one block: what is done there, and by which names it is read."""

    def __init__(self, point: HookPoint) -> None:
        self.point = point
        self.function: Function | None = None
        self.names: list[str] = []
        self.seen = False  # in any forward
        self.copied = False  # the model goes on with a copy, since it adds to its own tensor


def _places(
    model: Any, replace: dict[str | HookPoint, Function], read: list[str | HookPoint]
) -> tuple[list[_Place], list[str]]:
    places: dict[str, _Place] = {}

    def place(key: str | HookPoint) -> _Place:
        point = resolve_hook_points(model, [key])[0] if isinstance(key, str) else key
        return places.setdefault(point.name, _Place(point))

    for key, function in replace.items():
        here = place(key)
        if here.function is not None:
            raise bad("replace", key, f"each point once; {here.point.name} is there by two names")
        here.function = function
    order = [key if isinstance(key, str) else key.name for key in read]
    for key, name in zip(read, order, strict=True):
        here = place(key)
        here.names.append(name)
        point = here.point
        here.copied = point.side in ("input", "output") and _adds_in_place(type(point.block).forward)
    return list(places.values()), order


class _Forward:
    """The places of one block, and how far a forward has come with them."""

    def __init__(
        self, places: list[_Place], order: list[str], acts: dict[str, Tensor], stop: bool
    ) -> None:
        self.places, self.order, self.acts, self.stop = places, order, acts, stop
        self.running = False
        self.due = {place.point.name for place in places}
        self.versions: dict[str, int] = {}
        self.shapes: dict[nn.Module, torch.Size] = {}  # of a layer's input

    def attach(self, model: Any, hooks: ExitStack) -> None:
        """Put the hooks into the model; `hooks` takes them out again."""
        base = model.base_model
        hooks.callback(base.register_forward_pre_hook(self._begin).remove)
        hooks.callback(base.register_forward_hook(self._end, always_call=True).remove)
        taps: dict[nn.Module, dict[str, Tap]] = {}
        for place in self.places:
            module, side = place.point.module, place.point.side
            if side == "output":
                hook = module.register_forward_hook(functools.partial(self._after, place))
            elif side == "input":
                hook = module.register_forward_pre_hook(
                    functools.partial(self._before, place), with_kwargs=True
                )
            else:
                taps.setdefault(module, {})[side] = functools.partial(self._heads, place)
                continue
            hooks.callback(hook.remove)
            if place.point.site.startswith("mlp") and _is_child(module, place.point.block):
                hook = place.point.block.register_forward_pre_hook(self._shape, with_kwargs=True)
                hooks.callback(hook.remove)
        if taps:
            hooks.enter_context(attention_tapped(model, taps))

    def _begin(self, *_: Any) -> None:
        self.running = True
        self.due = {place.point.name for place in self.places}

    def _end(self, _: nn.Module, __: Any, out: Any) -> None:
        self.running = False
        if out is not None:
            self._complete()

    def _shape(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        self.shapes[block] = _first_input(args, kwargs).shape

    def _after(self, place: _Place, _: nn.Module, __: Any, out: Any) -> Any:
        # transformers 5 layers return tensors, older ones tuples that start with it.
        old = out if isinstance(out, Tensor) else out[0]
        new = self._rows(place, old)
        if new is old:
            return None
        return new if isinstance(out, Tensor) else (new, *out[1:])

    def _before(self, place: _Place, _: nn.Module, args: Any, kwargs: Any) -> Any:
        given = _first_input(args, kwargs)
        # A node of its own: the gradient is that of this input, not of all who read the same tensor.
        old = given.view_as(given) if given.requires_grad else given
        new = self._rows(place, old)
        if new is given:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def _rows(self, place: _Place, x: Tensor) -> Tensor:
        """At a module's input or output: [B, T, d], or [B T, d] inside of OPT's layers."""
        if x.dim() == 2 and place.point.block in self.shapes:
            old = x.unflatten(0, self.shapes[place.point.block][:2])
            new = self._passed(place, old)
            return x if new is old and not x.requires_grad else new.flatten(0, 1)
        new = self._passed(place, x)
        return new.clone() if place.copied else new

    def _heads(self, place: _Place, x: Tensor) -> Tensor:
        """At q, k or v: [B, H, T, D], by the layer's own layout."""
        old = x.transpose(1, 2).flatten(2)
        new = self._passed(place, old)
        if new is old and not x.requires_grad:
            return x
        new = new.unflatten(2, (x.shape[1], x.shape[3])).transpose(1, 2)
        return new.contiguous() if x.is_contiguous() else new

    def _passed(self, place: _Place, old: Tensor) -> Tensor:
        """What the model goes on with in the place of `old` [B, T, d]."""
        name = place.point.name
        if self.running and name not in self.due:
            raise InputError(f"{name}: a forward came to it twice: its layers share a module")
        new = old if place.function is None else _checked(name, place.function(old), old)
        place.seen = True
        self.due.discard(name)
        for key in place.names:
            self.acts[key] = new
        if place.names and not new.is_inference():
            self.versions[name] = new._version
        if self.stop and not self.due:
            self._complete()
            raise _Stopped(self)
        return new

    def _complete(self) -> None:
        """Of what a forward read: none was changed since, and the order is that asked for."""
        for place in self.places:
            version = self.versions.pop(place.point.name, None)
            if version is not None and self.acts[place.names[0]]._version != version:
                raise InputError(
                    f"{place.point.name}: its activations were changed in place after they were read;"
                    " a function at a later point must make a new tensor"
                )
        for name in [name for name in self.order if name in self.acts]:
            self.acts[name] = self.acts.pop(name)


def _checked(name: str, new: Any, old: Tensor) -> Tensor:
    if not isinstance(new, Tensor) or new.shape != old.shape or new.device != old.device:
        given = f"{list(new.shape)} on {new.device}" if isinstance(new, Tensor) else new
        raise bad(f"replace[{name!r}]", given, f"activations {list(old.shape)} on {old.device}")
    return new.to(old.dtype)


def _first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _is_child(module: nn.Module, block: nn.Module) -> bool:
    return any(module is child for child in block.children())


@functools.cache
def _adds_in_place(forward: Callable[..., Any]) -> bool:
    """Whether a layer changes tensors of its own in place: Falcon's adds the attention to mlp_out."""
    return any(
        step.opname.startswith("INPLACE") or (step.opname == "BINARY_OP" and "=" in step.argrepr)
        for step in dis.get_instructions(inspect.unwrap(forward))
    )
