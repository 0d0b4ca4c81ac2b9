"""tune(): time every shipped configuration on this card, and remember the fastest.

Nothing tunes itself: defaults are good, and a run that tuned at its start would time whatever else
the card was doing. What is found goes to a file (trustbench.tuned) that later runs read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trustbench import devices, ops, tuned
from trustbench.errors import bad
from trustbench.fields import Config, PositiveInt
from trustbench.ops import dispatch
from trustbench.ops.parameters import Moments, Weights
from trustbench.sae import SAE, SAEConfig
from trustbench.steps import dense
from trustbench.steps.triton import TritonStep


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
        print(f"written to {tuned.cache_file()}")
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
    for name, sizes, run in _kernels(d_in, d_sae, k, tokens, device):
        seconds = []
        for place in range(dispatch.shipped(name, d_in)):
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
        with ops.use("triton"), ops.trusted():  # nothing is read back between two launches
            return timer(run)
    except OutOfResources:  # the card has less shared memory than this configuration needs
        return float("inf")


def _kernels(
    d: int, F: int, k: int, N: int, device: torch.device
) -> Iterator[tuple[str, dict[str, int], Callable[[], Any]]]:
    """(kernel, the sizes its configuration is chosen by, a call)."""
    x = torch.randn(N, d, device=device).bfloat16()
    W = (torch.randn(F, d, device=device) / d**0.5).bfloat16()
    b, b_dec = torch.zeros(F, device=device), torch.zeros(d, device=device)
    sizes, one = {"N": N, "d": d, "F": F}, {"d": d}
    wide: dict[str, Any] = {"out_dtype": torch.float32}
    yield "encode_topk", sizes, lambda: ops.encode_topk(x, W, b, k, **wide)
    with ops.use("triton"):
        values, indices = ops.encode_topk(x, W, b, k, **wide)
        code = ops.transpose_code(indices, F)
    low = b - values[:, -1].mean()
    yield "collect", sizes, lambda: ops.encode_relu_padded(x, W, low, 4 * N * k)
    yield "relu_dense", sizes, lambda: ops.relu_dense(x, W, low)
    yield "decode", one, lambda: ops.decode(values, indices, W)
    yield "reconstruct", one, lambda: ops.reconstruct(values, indices, W, b_dec, x)
    narrow = values.bfloat16()
    yield "weight_grad", one, lambda: ops.weight_grad(narrow, indices, x, F)
    weights = Weights(W.float(), W.float(), b)
    moments, copies = Moments.zeros_like(weights), (W, W.clone())
    scalars = ops.step_scalars(1, 1e-6, 0.9, 0.999, scale=1 / N, device=device)
    yield (
        "sparse_adam", one,
        lambda: ops.sparse_adam_(
            weights, values, code, x, x, moments, scalars=scalars, copies=copies
        ),
    )  # fmt: skip


def _crossover(
    d: int, F: int, N: int, device: torch.device, timer: Callable[[Callable[[], Any]], float]
) -> Tuned:
    """The L0 at which a sparse step costs what a dense one does, from two sparse steps."""
    x = torch.randn(N, d, device=device).bfloat16()
    points: list[tuple[float, float]] = []
    for l0 in (max(F // 512, 1), max(F // 64, 2)):
        step = _relu(d, F, device, x, l0, dense_above=float("inf"))
        seconds = timer(lambda s=step: s.step(x, 0.0))  # type: ignore[misc]
        result = step.step(x, 0.0, measure=True)
        assert result is not None and result.l0 is not None
        points.append((result.l0, seconds))
    other = _relu(d, F, device, x, F // 2, dense_above=0.0)
    seconds = timer(lambda: other.step(x, 0.0))
    (low, fast), (high, slow) = points
    slope = max((slow - fast) / max(high - low, 1e-9), 1e-15)
    crossover = max(1.0, low + (seconds - fast) / slope)
    tuned.remember(dense.CROSSOVER, device, crossover, d=d, F=F)
    return Tuned(f"{dense.CROSSOVER}: L0 {crossover:.0f}", [fast, slow, seconds], 0)


def _relu(d: int, F: int, device: torch.device, x: Tensor, l0: int, **options: Any) -> TritonStep:
    """A ReLU SAE of which about l0 features are active on x."""
    sae = SAE(SAEConfig(d_in=d, d_sae=F, activation="relu")).to(device)
    step = TritonStep(sae, **options)
    pre = x[:1024].float() @ step.weights.W_enc.T
    step.weights.b_enc.fill_(-float(pre.topk(l0, dim=1).values[:, -1].mean()))
    step.l0 = float(l0)
    return step
