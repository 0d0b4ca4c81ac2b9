"""The codes of a step on Triton kernels, in memory of a size that is known beforehand.

How many entries ReLU keeps, or how many features are dead, only the data tells. A code is given room
for what was last seen, and more; with it comes a flag on the device that says whether that was
enough. `exact` asks the device for the sizes instead.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from trustbench.ops import dispatch
from trustbench.ops.codes import entry_rows
from trustbench.sae.losses import among_dead

if TYPE_CHECKING:
    from trustbench.steps.triton import DeviceTrainer


class Encoded(NamedTuple):
    """A code, and whether there was room for all of it."""

    values: Tensor  # [N, k], or flat with zeros behind the entries
    indices: Tensor
    offsets: Tensor | None  # None: k entries a token
    tokens: Tensor | None  # the token of every entry; None: k entries a token
    fits: Tensor | None = None  # bool [1]; None: there always is


class AuxK(NamedTuple):
    """AuxK's code: values [N, k] are 0 where fewer features are dead."""

    values: Tensor
    indices: Tensor
    any: Tensor  # bool: whether a feature is dead
    fits: Tensor  # bool [1]: whether all dead features took part


def room(most: float) -> int:
    """A power of two with at least a third to spare: few sizes, few graphs."""
    return 1 << max(5, math.ceil(math.log2(max(1.5 * most, 1))))


def entries(trainer: DeviceTrainer, N: int) -> int:
    """How many entries a sparse ReLU code has room for; 0 for other codes."""
    if not trainer.sparse_relu:
        return 0
    return min(N * room(trainer.l0), N * trainer.sae.cfg.d_sae)


def encode(trainer: DeviceTrainer, centred: Tensor, exact: bool) -> Encoded:
    """The code of x - b_dec."""
    cfg = trainer.sae.cfg
    arguments: Any = (centred, trainer.read_weights[0], trainer.weights.b_enc)
    if cfg.activation == "topk":
        values, indices = dispatch.triton("encode_topk").encode_topk(*arguments, cfg.k)
        return Encoded(values, indices, None, None)
    relu = cfg.activation == "relu"
    kernels = dispatch.triton("encode_relu" if relu else "encode_batchtopk")
    if not exact:
        size = entries(trainer, len(centred)) if relu else cfg.k
        code, fits = kernels.padded(*arguments, size)
        return Encoded(code.values, code.indices, code.row_offsets, code.tokens, fits)
    encoder = kernels.encode_relu if relu else kernels.encode_batchtopk
    values, indices, offsets = encoder(*arguments, None if relu else cfg.k)
    if relu:
        trainer.l0 = len(values) / len(centred)
    yes = torch.ones_like(trainer.fits)
    return Encoded(values, indices, offsets, entry_rows(indices, offsets), yes)


def auxk(trainer: DeviceTrainer, centred: Tensor, exact: bool) -> AuxK | None:
    """The largest pre-activations among the dead features: a matmul with those rows alone.

    None when they have all come back since the last measurement, which only `exact` notices.
    """
    encode_topk = dispatch.triton("encode_topk").encode_topk
    W, b = trainer.read_weights[0], trainer.weights.b_enc
    most = trainer.sae.cfg.auxk_features
    if exact:
        code = among_dead(
            trainer.dead, most, lambda features, k: encode_topk(centred, W[features], b[features], k)
        )
        trainer.dead_count = int(trainer.dead.sum())
        yes = torch.ones_like(trainer.fits)
        return None if code is None else AuxK(code.values, code.indices, yes[0], yes)
    size = min(room(trainer.dead_count), trainer.sae.cfg.d_sae)
    listed, count = dispatch.triton("_select").list_rows(trainer.dead.int())
    there = torch.arange(size, device=count.device) < count
    features = torch.where(there, listed[:size], 0)
    # Behind the dead ones lie copies of feature 0 that nothing chooses: their value is -inf.
    bias = torch.where(there, b[features], float("-inf"))
    values, chosen = encode_topk(centred, W[features], bias, min(most, size))
    return AuxK(values, features[chosen.long()], count[0] > 0, count <= size)
