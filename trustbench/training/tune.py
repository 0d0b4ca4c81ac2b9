"""tune(): time every shipped configuration on this card, and remember the fastest.

Nothing tunes itself: defaults are good, and a run that tuned at its start would time whatever else
the card was doing. What is found goes to a file (kernels/triton/_tuned.py) that later runs read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trustbench import devices
from trustbench.errors import bad
from trustbench.fields import Config, PositiveInt
from trustbench.ops import dispatch
from trustbench.sae import SAE, SAEConfig
from trustbench.steps import dense as dense_step
from trustbench.steps.triton import DeviceTrainer


class Tuned(NamedTuple):
    """What was timed: seconds of every configuration, in the order in which they are shipped."""

    name: str
    seconds: list[float]
    fastest: int


@dataclass(frozen=True, kw_only=True)
class TuneConfig(Config):
    """The sizes to tune for; they are rounded to powers of two in what is remembered.

    Parameters
    ----------
    d_in
        Width of the activations.
    d_sae
        Features of an SAE.
    k
        Active features a token.
    batch_size
        Tokens a training step.
    device
        cuda or cuda:N.
    """

    d_in: PositiveInt = 1024
    d_sae: PositiveInt = 32768
    k: PositiveInt = 64
    batch_size: PositiveInt = 16384
    device: str = "cuda"


def tune(config: TuneConfig, *, progress: bool = True) -> list[Tuned]:
    """Time every shipped configuration of the GPU kernels on this card.

    The fastest are remembered for later runs. Optional: the defaults are good.

    Parameters
    ----------
    config : TuneConfig
    progress : bool
        Print the times of every kernel as they are known.

    Raises
    ------
    InputError
        On a CPU, where there is nothing to tune.
    """
    device = devices.resolve(config.device)
    if device.type != "cuda":
        raise bad("device", config.device, "a CUDA device: there is nothing to tune on a CPU")
    from triton.testing import do_bench

    found = []
    sizes = (config.d_in, config.d_sae, config.k, config.batch_size)
    for each in timings(*sizes, device, lambda run: do_bench(run, return_mode="median") / 1e3):
        found.append(each)
        if progress:
            times = ", ".join(f"{1e3 * seconds:.3f}" for seconds in each.seconds)
            print(f"{each.name}: {times} ms; fastest: {each.fastest}")
    if progress:
        print(f"written to {dispatch.triton('_tuned').cache_file()}")
    return found


def timings(
    d_in: int,
    d_sae: int,
    k: int,
    tokens: int,
    device: torch.device,
    timer: Callable[[Callable[[], Any]], float],
) -> Iterator[Tuned]:
    """Time the kernels of a TopK step, and where a ReLU step's dense matmuls begin to pay.

    Parameters
    ----------
    d_in, d_sae, k, tokens : int
        The sizes to tune for; they are rounded to powers of two in what is remembered.
    device : torch.device
    timer
        Seconds of a call.
    """
    tuned = dispatch.triton("_tuned")
    for name, configs, sizes, run in _kernels(d_in, d_sae, k, tokens, device):
        seconds = []
        for place in range(len(configs)):
            with tuned.forced(name, place):
                seconds.append(_timed(timer, run))
        best = tuned.fastest(seconds)
        if seconds[best] < float("inf"):
            tuned.remember(name, device, best, **sizes)
        yield Tuned(name, seconds, best)
    yield _crossover(d_in, d_sae, tokens, device, timer)


def _timed(timer: Callable[[Callable[[], Any]], float], run: Callable[[], Any]) -> float:
    from triton.runtime.errors import OutOfResources

    try:
        return timer(run)
    except OutOfResources:  # the card has less shared memory than this configuration needs
        return float("inf")


def _kernels(
    d: int, F: int, k: int, N: int, device: torch.device
) -> Iterator[tuple[str, Sequence[Any], dict[str, int], Callable[[], Any]]]:
    """(kernel, its configurations, the sizes they are chosen by, a call)."""
    x = torch.randn(N, d, device=device).bfloat16()
    W = (torch.randn(F, d, device=device) / d**0.5).bfloat16()
    b, b_dec = torch.zeros(F, device=device), torch.zeros(d, device=device)
    encode, rows = dispatch.triton("encode_topk"), dispatch.triton("_launch").row_options(d)
    sizes = {"N": N, "d": d, "F": F}
    yield "encode_topk", encode.CONFIGS, sizes, lambda: encode.encode_topk(x, W, b, k)
    values, indices = encode.encode_topk(x, W, b, k)
    relu, low = dispatch.triton("encode_relu"), b - values[:, -1].mean()
    collecting = dispatch.triton("_collect").CONFIGS
    yield "collect", collecting, sizes, lambda: relu.padded(x, W, low, 4 * N * k)
    yield "encode_relu.dense", relu.CONFIGS, sizes, lambda: relu.dense(x, W, low)
    one: dict[str, int] = {"d": d}
    decode, reconstruct = dispatch.triton("decode").decode, dispatch.triton("reconstruct").reconstruct
    yield "decode", rows, one, lambda: decode(values, indices, W, None)
    yield (
        "reconstruct", rows, one,
        lambda: reconstruct(
            values, indices, W, b_dec, x, None, gradient=False, error_dtype=torch.bfloat16
        ),
    )  # fmt: skip
    code = dispatch.triton("transpose_code").transpose_code(indices, F)
    grad = dispatch.triton("weight_grad").weight_grad
    yield "weight_grad", rows, one, lambda: grad(values, code, x)
    kernels = dispatch.triton("sparse_adam")
    weights = [W.float(), W.float(), b]
    moments = [torch.zeros_like(w) for w in weights for _ in range(2)]
    figures = kernels.on_device(kernels.scalars(1, 1e-6, 0.9, 0.999, 1 / N), device)
    yield (
        "sparse_adam", rows, one,
        lambda: kernels.sparse_adam(
            weights, moments, (W, W.clone()), values, code, x, x, figures, (0.9, 0.999), 1e-8, True,
            False,
        ),
    )  # fmt: skip


def _crossover(
    d: int, F: int, N: int, device: torch.device, timer: Callable[[Callable[[], Any]], float]
) -> Tuned:
    """The L0 at which a sparse step costs what a dense one does, from two sparse steps."""
    x = torch.randn(N, d, device=device).bfloat16()
    points: list[tuple[float, float]] = []
    for l0 in (max(F // 512, 1), max(F // 64, 2)):
        trainer = _relu(d, F, device, x, l0, dense_above=float("inf"))
        seconds = timer(lambda t=trainer: t.step(x, 0.0))  # type: ignore[misc]
        result = trainer.step(x, 0.0, measure=True)
        assert result is not None and result.l0 is not None
        points.append((result.l0, seconds))
    dense = _relu(d, F, device, x, F // 2, dense_above=0.0)
    seconds = timer(lambda: dense.step(x, 0.0))
    (low, fast), (high, slow) = points
    slope = max((slow - fast) / max(high - low, 1e-9), 1e-15)
    crossover = max(1.0, low + (seconds - fast) / slope)
    dispatch.triton("_tuned").remember(dense_step.CROSSOVER, device, crossover, d=d, F=F)
    return Tuned(f"{dense_step.CROSSOVER}: L0 {crossover:.0f}", [fast, slow, seconds], 0)


def _relu(d: int, F: int, device: torch.device, x: Tensor, l0: int, **options: Any) -> DeviceTrainer:
    """A ReLU SAE of which about l0 features are active on x."""
    sae = SAE(SAEConfig(d_in=d, d_sae=F, activation="relu")).to(device)
    trainer = DeviceTrainer(sae, **options)
    pre = x[:1024].float() @ trainer.weights.W_enc.T
    trainer.weights.b_enc.fill_(-float(pre.topk(l0, dim=1).values[:, -1].mean()))
    trainer.l0 = float(l0)
    return trainer
