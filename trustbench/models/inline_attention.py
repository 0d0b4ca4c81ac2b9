"""Attention that a model computes in line, not through transformers' AttentionInterface, as one call.

GPT-Neo, Falcon, BLOOM, MPT and models that bring their own code multiply queries and keys in the
forward of their attention. Inside `called` that product is not computed: a stand-in for the scores
records what the model does with them until they meet the values. This depends on no family's names;
a step that is not understood is still in the record, and can be refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trustbench.models.hook_points import decoder_layers


class Slot(NamedTuple):
    """Stands in a step's arguments for a tensor that the attention is called with."""

    name: str


Q, K, K_T, V, SCORES = map(Slot, ("q", "k", "kᵀ", "v", "scores"))


class Step(NamedTuple):
    """One function of the scores, as the model calls it."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: torch.Size  # of the result

    @property
    def name(self) -> str:
        """Of the function, whichever way it was called: add for torch.add, + and +=."""
        name = self.function.__name__.strip("_")
        return name[1:] if name in ("iadd", "isub", "imul", "itruediv") else name

    def __call__(self, tensors: Mapping[Any, Tensor]) -> Tensor:
        """Its result, with these tensors in the slots."""
        args = [tensors[a] if isinstance(a, Slot) else a for a in self.args]
        kwargs = {n: tensors[a] if isinstance(a, Slot) else a for n, a in self.kwargs.items()}
        return self.function(*args, **kwargs)


class Call(NamedTuple):
    """One attention of one layer: softmax(what `steps` make of q kᵀ) v."""

    module: nn.Module
    q: Tensor  # [B, H, T, D], after any rotary embedding
    k: Tensor  # [B, H or 1, S, D]
    v: Tensor  # [B, H or 1, S, D]
    steps: tuple[Step, ...]  # from q kᵀ to p v; of torch's fused attention the one step

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, H, T, D]: what the model itself computes of q, k and v, with gradients."""
        shape = q.shape[:3]
        q, k = (_as_rank(t, self.steps[0].shape) for t in (q, k))
        tensors = {Q: q, K: k, K_T: k.mT, V: _as_rank(v, self.steps[-1].shape)}
        for step in self.steps:
            tensors[SCORES] = step(tensors)
        return tensors[SCORES].view(*shape, -1)


def _as_rank(t: Tensor, like: torch.Size) -> Tensor:
    return t if len(like) == 4 else t.flatten(0, 1)


Attend = Callable[[Call], Tensor]


def inline_modules(model: Any) -> dict[str, nn.Module]:
    """{path: module} of the decoder layers' attention that is computed in line."""
    path, _ = decoder_layers(model)
    found = {
        name: module
        for name, module in model.named_modules()
        if name.startswith(f"{path}.")
        and "Attention" in type(module).__name__
        and not hasattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS")
    }
    inner = {name.rpartition(".")[0] for name in found}
    return {name: module for name, module in found.items() if name not in inner}


@contextmanager
def called(model: Any, attend: Attend) -> Iterator[None]:
    """Inside the block, attention that the model computes in line is what `attend` returns.

    Parameters
    ----------
    model
        A transformers causal LM. Its dropout is not to be in use.
    attend
        From a Call to the attention's output [B, H, T, D]; `call.run(call.q, call.k, call.v)` is what
        the model would have computed.

    Raises
    ------
    NotImplementedError
        Naming the class, for scores whose heads are not told apart.
    """
    handles: list[Any] = []
    for module in inline_modules(model).values():
        mode, entered = _Recording(module, attend), ExitStack()

        def enter(*_: Any, mode: _Recording = mode, entered: ExitStack = entered) -> None:
            entered.enter_context(mode)

        def leave(*_: Any, entered: ExitStack = entered) -> None:
            entered.close()  # of nothing, if the forward failed before it was entered

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Scores(Tensor):
    """Scores, or probabilities, that have a shape and a history but no numbers.

    Their functions come to the mode, as all do.
    """

    q: Tensor
    k_t: Tensor
    steps: tuple[Step, ...]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class _Recording(TorchFunctionMode):
    """What every function of torch goes through in an attention's forward."""

    def __init__(self, module: nn.Module, attend: Attend) -> None:
        super().__init__()
        self.module, self.attend = module, attend

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.strip("_")
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        scores = next((t for t in tensors if isinstance(t, _Scores)), None)
        if name == "scaled_dot_product_attention":
            q, k, v = tensors[:3]
            step = _step(func, args, kwargs, {id(q): Q, id(k): K, id(v): V}, q.shape)
            return self.attend(Call(self.module, q, k, v, (step,)))
        product = name in ("matmul", "bmm", "baddbmm")
        if scores is None:
            if not product or any(t.dim() not in (3, 4) for t in tensors):
                return func(*args, **kwargs)
            q, k_t = tensors[-2:]
            return _stand_in(q, k_t, (), {id(q): Q, id(k_t): K_T}, func, args, kwargs)
        if product and tensors[0] is scores:
            return self._attended(scores, tensors[1], func, args, kwargs)
        if func == Tensor.device.__get__:
            return scores.q.device
        slots = {id(scores): SCORES}
        return _stand_in(scores.q, scores.k_t, scores.steps, slots, func, args, kwargs)

    def _attended(self, scores: _Scores, v: Tensor, func: Any, args: Any, kwargs: Any) -> Tensor:
        split = [step.shape[:2] for step in scores.steps if len(step.shape) == 4]
        if not split:
            name = type(self.module).__name__
            raise NotImplementedError(f"{name}: its scores have no dimension of heads")
        shape = torch.Size((*scores.shape[:-1], v.shape[-1]))
        step = _step(func, args, kwargs, {id(scores): SCORES, id(v): V}, shape)
        q, k, v = (
            t if t.dim() == 4 else t.unflatten(0, split[0]) for t in (scores.q, scores.k_t.mT, v)
        )
        out = self.attend(Call(self.module, q, k, v, (*scores.steps, step)))
        return _as_rank(out.contiguous(), shape)


def _step(
    func: Any, args: Any, kwargs: dict[str, Any], slots: dict[int, Slot], shape: torch.Size
) -> Step:
    named = {n: slots.get(id(a), a) for n, a in kwargs.items()}
    return Step(func, tuple(slots.get(id(a), a) for a in args), named, shape)


def _stand_in(
    q: Tensor, k_t: Tensor, steps: tuple[Step, ...], slots: dict[int, Slot], func: Any, args: Any,
    kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    """The scores after one function more; or what that says of them, such as their size."""
    meta = {n: _on_meta(a) for n, a in kwargs.items()}
    result = func(*map(_on_meta, args), **meta)
    if not isinstance(result, Tensor):
        return result
    scores = result.as_subclass(_Scores)
    step = _step(func, args, kwargs, slots, result.shape)
    scores.q, scores.k_t, scores.steps = q, k_t, (*steps, step)
    return scores


def _on_meta(a: Any) -> Any:
    if isinstance(a, Tensor):
        return torch.empty_like(a.as_subclass(Tensor), device="meta")
    if hasattr(type(a), "__torch_function__"):  # a stand-in for a mask, of which this knows no more
        return torch.empty((), dtype=torch.bool, device="meta")
    return a
