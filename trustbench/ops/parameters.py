"""What the optimiser's ops update together: an SAE's weights, and Adam's moments of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trustbench.ops.spec import FULL, Tensors, same


class Weights(NamedTuple):
    """The parameters that a code's gradient reaches: all fp32, contiguous."""

    W_enc: Tensor  # [F, d_in]
    W_dec: Tensor  # [F, d_out]
    b_enc: Tensor  # [F]


class Moments(NamedTuple):
    """Adam's first (m) and second (v) moments of `Weights`: all fp32, contiguous.

    Those of the matrices may be bf16 for the Triton kernels.
    """

    m_W_enc: Tensor
    v_W_enc: Tensor
    m_W_dec: Tensor
    v_W_dec: Tensor
    m_b_enc: Tensor
    v_b_enc: Tensor

    @classmethod
    def zeros_like(cls, weights: Weights, dtype: torch.dtype = torch.float32) -> Moments:
        """Fresh moments, on the device of the weights; `dtype`: of the matrices' moments."""
        kinds = (w.dtype if w.ndim == 1 or dtype == torch.float32 else dtype for w in weights)
        return cls(
            *(
                torch.zeros_like(w, dtype=kind)
                for w, kind in zip(weights, kinds, strict=True)
                for _ in range(2)
            )
        )


# What `weights` and `moments` are to an op's SPEC.
_SIZES = {"W_enc": "F d_in", "W_dec": "F d_out", "b_enc": "F"}
WEIGHTS: Tensors = {
    f"weights.{name}": (sizes, FULL if name == "W_dec" else same("weights.W_dec"))
    for name, sizes in _SIZES.items()
}
MOMENTS: Tensors = {
    f"moments.{name}": (_SIZES[name[2:]], same("weights.W_dec")) for name in Moments._fields
}
