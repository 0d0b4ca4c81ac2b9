"""q, k and v on their way into a layer's attention, in any transformers family.

They are taken where the layer calls its attention function: transformers' AttentionInterface, or
its own lines (`inline_attention`). With a KV cache, keys and values are taken one step earlier, where
the layer hands them to it: so a forward shows those of its own tokens, and the cache keeps what
replaces them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any, NamedTuple

from torch import Tensor, nn

from trustbench.models.inline_attention import Attend, Call, called

Tap = Callable[[Tensor], Tensor]  # [B, H, T, D] -> [B, H, T, D]

_CACHE = ("cache", "layer_past", "past_key_values", "past_key_value")


class _Tapped(NamedTuple):
    """What one `attention_tapped` is about."""

    model: Any
    taps: Mapping[nn.Module, Mapping[str, Tap]]  # by attention block and kind
    blocks: Mapping[nn.Module, nn.Module]  # of every module in one of them


_lock = Lock()
_tapped: tuple[_Tapped, ...] = ()  # outer ones first
_caches: dict[nn.Module, _Cache] = {}  # of the attention blocks that are running


@contextmanager
def attention_tapped(model: Any, taps: Mapping[nn.Module, Mapping[str, Tap]]) -> Iterator[None]:
    """Inside the block, queries, keys and values pass through functions.

    Parameters
    ----------
    model
        A transformers causal LM.
    taps : {attention block of a decoder layer: {"q", "k" or "v": function}}
        Each function gives a tensor of the shape it gets, [B, H, T, D]. An outer `attention_tapped`'s
        run before an inner one's.

    Raises
    ------
    NotImplementedError
        In the forward, naming the layer: where its cache keeps something else than keys and values.
    """
    global _tapped
    mine = _Tapped(model, taps, {part: block for block in taps for part in block.modules()})
    with ExitStack() as stack:
        if all(other.model is not model for other in _tapped):
            stack.enter_context(called(model, tapped(lambda call: call.run(call.q, call.k, call.v))))
        for block, functions in taps.items():
            if not functions.keys().isdisjoint("kv"):
                _stand_in(block, stack)
        with _lock:
            _tapped = (*_tapped, mine)
            _tap_interface()
        try:
            yield
        finally:
            with _lock:
                _tapped = tuple(other for other in _tapped if other is not mine)
                _tap_interface()


def _passed(block: nn.Module, kind: str, states: Tensor) -> Tensor:
    for one in _tapped:
        if tap := one.taps.get(block, {}).get(kind):
            states = tap(states)
    return states


def _attended(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What an attention function gets: q [B, H, T, D], and k, v [B, H_kv, S, D] with the cached."""
    home = next((one for one in _tapped if module in one.blocks), None)
    if home is None:
        return q, k, v
    block = home.blocks[module]
    q = _passed(block, "q", q)
    if block not in _caches:
        return q, _passed(block, "k", k), _passed(block, "v", v)
    if _caches[block].shapes != (k.shape, v.shape):
        name = next(name for name, part in home.model.named_modules() if part is block)
        raise NotImplementedError(
            f"{name}: its cache keeps something else than keys and values;"
            " k and v need use_cache=False"
        )
    return q, k, v


class _Cache:
    """Stands in for a layer's cache, in one run of its attention block."""

    def __init__(self, block: nn.Module, cache: Any) -> None:
        self._block, self._cache = block, cache
        self.shapes: tuple[Any, ...] = ()  # of the keys and values given back

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What a layer calls with the keys and values of its tokens."""
        key, value = _passed(self._block, "k", key), _passed(self._block, "v", value)
        keys, values = self._cache.update(key, value, *args, **kwargs)
        self.shapes = keys.shape, values.shape
        return keys, values


def _stand_in(block: nn.Module, stack: ExitStack) -> None:
    """Give a _Cache to the block in the place of its cache, if it is given one."""
    parameters = list(inspect.signature(block.forward).parameters)
    name = next((name for name in _CACHE if name in parameters), None)
    if name is None:
        return
    place = parameters.index(name)

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[place] if place < len(args) else kwargs.get(name)
        if given is None or isinstance(given, _Cache):
            return None
        cache = _caches[block] = _Cache(block, given)
        if place < len(args):
            return (*args[:place], cache, *args[place + 1 :]), kwargs
        return args, {**kwargs, name: cache}

    stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)

    def leave(*_: Any) -> None:
        _caches.pop(block, None)

    stack.callback(block.register_forward_hook(leave, always_call=True).remove)


def tapped(attend: Attend) -> Attend:
    """For `inline_attention.called`: the same, of what the taps of a hooked model give."""

    def attend_tapped(call: Call) -> Tensor:
        q, k, v = _attended(call.module, call.q, call.k, call.v)
        return attend(call._replace(q=q, k=k, v=v))

    return attend_tapped


def _tap_interface() -> None:
    """Let attention functions that layers ask transformers for see what taps give; or no longer."""
    from transformers import AttentionInterface

    original = inspect.unwrap(AttentionInterface.get_interface)
    # Not by assignment, which a type checker takes for a mistake.
    setattr(AttentionInterface, "get_interface", _tapping(original) if _tapped else original)  # noqa: B010


def _tapping(get_interface: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(get_interface)
    def get(*args: Any, **kwargs: Any) -> Any:
        attention = get_interface(*args, **kwargs)

        def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **etc: Any) -> Any:
            return attention(module, *_attended(module, q, k, v), *rest, **etc)

        return attend

    return get
