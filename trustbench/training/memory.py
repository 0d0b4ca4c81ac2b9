"""How much GPU memory a run needs, told before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from trustbench.errors import InputError
from trustbench.kernels.sizes import AT_ONCE, GROUP, LONG, STAGING
from trustbench.sae.families import family
from trustbench.training.config import TrainConfig

_GB = 1e9
_CONTEXT = 0.8e9  # the driver's context, the libraries' workspaces
_SLACK = 1.04  # what the allocator cannot hand out again


class Memory(NamedTuple):
    """Bytes of a run on a GPU, by what they are for."""

    model: float
    weights: float  # fp32, with the bf16 copies that the kernels read
    state: float  # Adam's moments
    buffer: float
    batch: float  # the taken batch, and one forward's activations
    step: float  # working memory of one layer's step: the layers share it
    other: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(self))


def predict(
    config: TrainConfig, sizes: Mapping[str, tuple[int, int]], kept: int, model_bytes: int
) -> Memory:
    """The memory of a run on a GPU.

    Parameters
    ----------
    config : TrainConfig
    sizes : {wiring: (d_in, d_out)}
        Of the SAEs that are trained; d_out 0: what is reconstructed is what is read.
    kept : int
        Columns of all hook points together.
    model_bytes : int
        Of the model's weights.
    """
    sae, N = config.sae, config.batch_size
    F, count = sae.d_sae, len(sizes)
    columns = [d_in + (d_out or d_in) for d_in, d_out in sizes.values()]
    widest = -(-max(columns) // 2)
    matrix = F * sum(columns)  # numbers in W_enc and W_dec of all SAEs
    narrow = config.matmul_dtype != "fp32"
    item = 2 if narrow else 4
    kind = config.buffer_dtype
    stored = {"fp32": 4.0, "fp8": 1 + 1 / 32}.get(kind, 2.0)
    taken = 4 if kind == "fp32" else 2
    rows = config.model_rows * config.context_length
    weights = matrix * (6 if narrow else 4) + 4 * count * F
    state = matrix * (4 if config.state_dtype == "bf16" else 8) + 16 * count * F
    forward = rows * (kept + 16 * widest) * (4 if config.model_dtype == "fp32" else 2)
    # A step that guesses sizes keeps its tokens until the next one.
    guesses = family(sae.activation).entries != "k"
    return Memory(
        model=model_bytes,
        weights=weights,
        state=state,
        buffer=config.buffer_capacity * kept * stored + (STAGING if config.spill else 0),
        batch=N * kept * taken * (2 if guesses else 1) + forward,
        step=_step(config, N, widest, F, item),
        other=_CONTEXT,
    )


def _step(config: TrainConfig, N: int, d: int, F: int, item: int) -> float:
    """Working memory of one layer's step."""
    sae, kind = config.sae, family(config.sae.activation)
    tokens = N * d * (4 * item + 4)  # scaled, centred, residual, one fp32 temporary, a graph's input
    partial = F / GROUP * d * 4
    if kind.terms is None:  # dense gradients through autograd
        return tokens + 4 * F * d * 4 + 1.0 * N * F
    if kind.entries == "data":
        sparse = 1.0 * N * F  # room for one in 16 entries, the map of bits
        # The dense regime: acts, dacts, two gradients in fp32.
        dense = 2 * N * F * item + 2 * F * d * 4 if kind.dense else 0.0
        return tokens + partial + max(sparse, dense)
    entries = N * sae.k
    if kind.entries == "batch":  # candidates, the map of bits and its counts, the sample
        encode = 12.0 * (4 * entries + 4096) + 8.0 * N * F / 32 + 4.0 * min(N, 256) * F
    else:
        # Candidates (2 of 16, more for a large k), what each tile dropped, rows that are done again.
        kept = 2 if 512 * sae.k <= F else 8
        encode = N * F * 4 * (kept / 16 + 1 / 128) + min(4 * AT_ONCE, 4 * N * F)
    tokens *= len(kind.prefixes(sae))
    if sae.auxk_features or sae.auxk < 0:
        entries += N * (sae.auxk_features or d // 2)
        tokens *= 2
    chunks = entries / LONG * 2 * d * 4
    return tokens + partial + encode + chunks + entries * 36


def check(needed: Memory, free: float, config: TrainConfig, count: int) -> str:
    """A line that says what a run needs and what the card has.

    Raises
    ------
    InputError
        When it is too little, with the settings that would make it fit.
    """
    total = needed.total * _SLACK
    parts = ", ".join(f"{name} {size / _GB:.1f}" for name, size in needed._asdict().items())
    line = f"needs {total / _GB:.1f} GB ({parts}), the card has {free / _GB:.1f} GB free"
    if total <= free:
        return line
    raise InputError(f"device: {line}; {_advice(needed, free, config, count)}")


def _advice(needed: Memory, free: float, config: TrainConfig, count: int) -> str:
    """What to change, most harmless first, until it would fit."""
    total, advice = needed.total * _SLACK, []
    smallest = config.smallest_buffer
    steps = []
    if config.buffer_dtype == "fp32":
        steps.append(("--buffer_dtype bf16", needed.buffer / 2))
    if config.buffer_capacity > 4 * config.batch_size + smallest:
        less = 4 * config.batch_size + smallest
        saved = needed.buffer * (1 - less / config.buffer_capacity)
        steps.append((f"--buffer_tokens {less}", saved))
    if config.state_dtype == "fp32":
        steps.append(("--state_dtype bf16", needed.state / 2))
    for flag, saved in steps:
        if total <= free:
            break
        advice.append(flag)
        total -= saved * _SLACK
    if total > free and count > 1:
        fixed = needed.model + needed.step + needed.other
        each = (total / _SLACK - fixed) / count
        fit = math.floor((free / _SLACK - fixed) / each)
        if fit >= 1:
            runs = math.ceil(count / fit)
            advice.append(f"--layers with at most {fit} layers a run ({runs} runs)")
            total = 0.0
    if total > free:
        advice.append("a smaller batch_size or d_sae")
    return "it would fit with " + " and ".join(advice)
