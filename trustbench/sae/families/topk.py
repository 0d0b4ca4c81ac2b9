"""TopK (Gao et al. 2024, arXiv:2406.04093): the k largest pre-activations of every token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trustbench import ops
from trustbench.errors import bad
from trustbench.ops import Code
from trustbench.sae.families.base import Family, How, plain_terms
from trustbench.sae.losses import plain_objective


def check_k(cfg: Any) -> None:
    """No more active features than there are."""
    if cfg.k > cfg.d_sae:
        raise bad("k", cfg.k, f"an integer in [1, d_sae={cfg.d_sae}]")


def encode(view: Any, centred: Tensor, how: How) -> Code:
    return ops.encode_topk(
        centred, view.W_enc, view.b_enc, view.cfg.k,
        matmul_dtype=view.matmul_dtype, out_dtype=how.dtype,
    )  # fmt: skip


def terms(view: Any, x: Tensor, y: Tensor, how: How) -> Any:
    return plain_terms(view, x, y, encode, how)


FAMILY = Family(
    "topk",
    "the k largest pre-activations of every token (Gao et al. 2024, arXiv:2406.04093)",
    frozenset({"k", "auxk", "auxk_coefficient"}),
    encode,
    lambda sae, x, y, dead: plain_objective(sae, x, y, encode, dead),
    terms,
    check=check_k,
    entries="k",
    auxk=True,
)
