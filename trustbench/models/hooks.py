"""Activations out of a model: one forward for all hook points, stopped as soon as they are all in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trustbench.errors import InputError
from trustbench.models.hook_points import HookPoint


class _AllCaptured(Exception):
    """Ends the forward once the last hook point was seen."""


def load_model(
    name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Any, Any]:
    """A causal LM in eval mode, without gradients, and its tokenizer.

    Parameters
    ----------
    name : str
        A local folder, or a name on the Hugging Face hub.

    Raises
    ------
    InputError
        When it cannot be loaded, with the library's own words.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"model={name!r}: expected a folder or hub name of a causal language model ({error})"
        ) from error
    return model.eval().requires_grad_(False).to(device), tokenizer


class ActivationCapture:
    """Captures hook points of a model.

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
        captured: dict[str, Tensor] = {}

        def keep(name: str, value: Any) -> None:
            captured[name] = _tensor(value)
            if len(captured) == len(self.hook_points):
                raise _AllCaptured

        handles = []
        for point in self.hook_points:
            if point.side == "output":

                def after(_: nn.Module, __: Any, out: Any, name: str = point.name) -> None:
                    keep(name, out)

                handles.append(point.module.register_forward_hook(after))
            else:

                def before(_: nn.Module, args: Any, kwargs: Any, name: str = point.name) -> None:
                    keep(name, _first_input(args, kwargs))

                handles.append(point.module.register_forward_pre_hook(before, with_kwargs=True))
        try:
            self.model.base_model(input_ids=input_ids.to(self.model.device), use_cache=False)
        except _AllCaptured:
            return {point.name: captured[point.name] for point in self.hook_points}
        finally:
            for handle in handles:
                handle.remove()
        missing = [p.name for p in self.hook_points if p.name not in captured]
        raise InputError(f"hook points {missing}: their modules were not run by the model")


@contextmanager
def replaced(point: HookPoint, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, the model runs with `function(activations)` at a hook point."""
    if point.side == "output":

        def after(_: nn.Module, __: Any, out: Any) -> Any:
            new = function(_tensor(out))
            return new if isinstance(out, Tensor) else (new, *out[1:])

        handle = point.module.register_forward_hook(after)
    else:

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            new = function(_first_input(args, kwargs))
            if args:
                return (new, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": new}

        handle = point.module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _tensor(value: Any) -> Tensor:
    # transformers 5 layers return tensors, older ones tuples that start with it.
    return value if isinstance(value, Tensor) else value[0]


def _first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]
