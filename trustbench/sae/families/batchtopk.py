"""BatchTopK (Bussmann et al. 2024, arXiv:2412.06410): the N k largest pre-activations of a batch.

At inference a threshold stands for the batch: a running mean of the batches' smallest activations
(eq. 8), about ten of them, since each is an order statistic of thousands of entries, and the weights
still move.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops import Code
from trustbench.sae.families.base import AnyCode, Family, How, Terms, plain_terms
from trustbench.sae.families.topk import check_k
from trustbench.sae.losses import plain_objective

_THRESHOLD_DECAY = 0.9


def encode(view: Any, centred: Tensor, how: How) -> AnyCode:
    arguments: Any = (centred, view.W_enc, view.b_enc, view.cfg.k)
    if how.batchtopk is not None:
        return how.batchtopk(view, centred, how)
    if how.room is not None:
        return ops.encode_batchtopk_padded(*arguments, matmul_dtype=view.matmul_dtype)
    return ops.encode_batchtopk(*arguments, matmul_dtype=view.matmul_dtype, out_dtype=how.dtype)


def infer(sae: Any, centred: Tensor) -> Code:
    """Every pre-activation above the threshold."""
    if torch.isnan(sae.threshold):
        raise InputError(
            "threshold=nan: a BatchTopK SAE in eval mode needs the threshold that training sets"
        )
    floor = sae.threshold.to(centred.dtype).expand(sae.cfg.d_sae)
    return ops.encode_relu(centred, sae.W_enc, sae.b_enc, floor, matmul_dtype=sae.matmul_dtype)


def terms(view: Any, x: Tensor, y: Tensor, how: How) -> Terms:
    return plain_terms(view, x, y, encode, how)


def after(sae: Any, values: Tensor) -> None:
    """Move the threshold towards this batch's smallest positive value."""
    if values.numel():
        least, known = torch.where(values > 0, values, float("inf")).min(), sae.threshold
        mixed = _THRESHOLD_DECAY * known + (1 - _THRESHOLD_DECAY) * least
        new = torch.where(known.isnan(), least, mixed)
        known.copy_(torch.where(least.isinf(), known, new))


FAMILY = Family(
    "batchtopk",
    "the N k largest pre-activations of a batch (Bussmann et al. 2024, arXiv:2412.06410)",
    frozenset({"k", "auxk", "auxk_coefficient"}),
    encode,
    lambda sae, x, y, dead: plain_objective(sae, x, y, encode, dead),
    terms,
    infer=infer,
    check=check_k,
    after=after,
    entries="batch",
    auxk=True,
)
