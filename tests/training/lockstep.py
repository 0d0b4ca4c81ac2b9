"""Two runs that differ by rounding, step by step: one is recorded, the other goes along with it.

A code is made of choices: a pre-activation above its threshold, among the k largest, within
JumpReLU's band. Where its gap to the boundary lies within rounding, either choice is right, and two
runs whose sums have another order may choose differently; from then on their weights part by more
than rounding. So a run that goes along compares its weights and counts with the recorded ones before
every step. Where the two choose differently in this step, it takes the recorded state, and so every
step is compared, on any processor. That each choice is right within rounding is checked in fp64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trustbench import ops
from trustbench.sae import SAE
from trustbench.training import loop

# Some sums have another order; Adam's division makes it more where gradients are tiny.
ROUNDED = {"rtol": 1e-3, "atol": 2e-5}


@contextmanager
def _before_steps(call: Callable[[Any, str, Any, Tensor], None]) -> Iterator[None]:
    """Calls call(run, hook point, trainer, x) before every step of every run."""
    original = loop._Run._step

    def watch(run: Any, name: str, trainer: Any) -> Any:
        step = type(trainer).step.__get__(trainer)

        def watched(x: Tensor, *arguments: Any, **options: Any) -> Any:
            call(run, name, trainer, x)
            return step(x, *arguments, **options)

        return watched

    def steps(run: Any, batch: Any, bar: Any) -> None:
        for name, trainer in run.steps.items():
            trainer.step = watch(run, name, trainer)
        original(run, batch, bar)

    loop._Run._step = steps
    try:
        yield
    finally:
        loop._Run._step = original


@contextmanager
def recorded(directory: Path) -> Iterator[None]:
    """Write the activations and the state of every step into a new directory."""
    directory.mkdir()

    def record(run: Any, name: str, trainer: Any, x: Tensor) -> None:
        torch.save((x, trainer.state_dict()), directory / f"{name}-{run.tokens}.pt")

    with _before_steps(record):
        yield


@contextmanager
def along(directory: Path) -> Iterator[None]:
    """Compare every step with the recorded ones; the order of ranks and shares does not matter."""

    def compare(run: Any, name: str, trainer: Any, x: Tensor) -> None:
        wanted, theirs = torch.load(directory / f"{name}-{run.tokens}.pt")
        assert torch.equal(x, wanted), f"{name}: other activations at {run.tokens} tokens"
        mine = trainer.state_dict()
        for key in (key for key in theirs if key.startswith("sae.")):
            torch.testing.assert_close(mine[key], theirs[key], equal_nan=True, **ROUNDED)
        assert torch.equal(mine["inactive"], theirs["inactive"])
        other = copy.deepcopy(trainer.sae)
        other.load_state_dict({k.removeprefix("sae."): v for k, v in theirs.items() if "sae." in k})
        if chooses_otherwise(trainer.sae, other, x, trainer.dead):
            trainer.load_state_dict(theirs)

    with _before_steps(compare):
        yield


def chooses_otherwise(one: SAE, two: SAE, x: Tensor, dead: Tensor) -> bool:
    """Whether two SAEs, in training, make other choices on x [N, d]; an error for a wrong one.

    Each must be right within the rounding of fp32: entries that they do not choose alike have gaps
    within that and the difference of their weights.
    """
    mine, theirs = (_choices(sae, x, dead) for sae in (one, two))
    return any(not torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@torch.no_grad()
def _choices(sae: SAE, x: Tensor, dead: Tensor) -> list[Tensor]:
    """The entries chosen in a training step, bool [N, F] each, checked against fp64."""
    cfg = sae.cfg
    scaled = sae.scaled(x)
    code = sae.encode_sparse(x)
    acts = sae.dense(code)
    operands = scaled - sae.b_dec, sae.W_enc
    centred, W = (t.to(sae.matmul_dtype or t.dtype).double() for t in operands)
    pre = centred @ W.T + sae.b_enc
    # The sum of d products and the bias, each rounded to fp32.
    sizes = centred.abs() @ W.abs().T + sae.b_enc.abs()
    rounding = (cfg.d_in + 2) * torch.finfo(torch.float32).eps * sizes

    def check(chosen: Tensor, edge: Tensor | float, slack: Tensor) -> Tensor:
        wrong = torch.where(chosen, edge - pre, pre - edge) > slack
        assert not wrong.any(), f"{int(wrong.sum())} choices that rounding does not explain"
        return chosen

    def among(chosen: Tensor, dims: tuple[int, ...], others: Tensor | None = None) -> Tensor:
        """The largest, from the smallest chosen one on, and positive."""
        edge = torch.where(chosen, pre, torch.inf).amin(dims, keepdim=True).clamp(min=0)
        slack = rounding + rounding.amax(dims, keepdim=True)  # the edge is one of them
        return check(chosen, edge, slack if others is None else slack.where(others, torch.inf))

    if cfg.activation == "relu":
        return [check(acts > 0, 0.0, rounding)]
    if cfg.activation == "jumprelu":
        theta, half = sae.log_threshold.exp(), cfg.bandwidth / 2
        kept = sae.dense(code._replace(values=torch.ones_like(code.values))) > 0
        edges = [(kept, theta - half), (acts > 0, theta), (acts - theta >= half, theta + half)]
        return [check(chosen, edge.double(), rounding) for chosen, edge in edges]
    found = [among(acts > 0, (1,) if cfg.activation == "topk" else (0, 1))]
    features = dead.nonzero().flatten()
    if cfg.auxk_features and len(features):
        k = min(cfg.auxk_features, len(features))
        dead_part = operands[0], sae.W_enc[features], sae.b_enc[features]
        aux = ops.encode_topk(*dead_part, k, matmul_dtype=sae.matmul_dtype)
        chosen = torch.zeros_like(acts).scatter(1, features[aux.indices.long()], aux.values) > 0
        found.append(among(chosen, (1,), dead))
    return found
