"""mask_gradient_: the dense regime's pass between its matmuls."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import running
from trustbench import ops
from trustbench.errors import InputError


@pytest.mark.parametrize("isa", ["reference", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("N, F", [(70, 130), (1, 1), (33, 7)])
def test_matches_the_definition(isa, dtype, N, F, monkeypatch):
    from trustbench.kernels.triton import mask_gradient

    monkeypatch.setattr(mask_gradient, "_SPAN", 32)  # several programs along the tokens
    acts, dacts = torch.randn(N, F).relu().to(dtype), torch.randn(N, F).to(dtype)
    slope = torch.rand(F)
    exact = torch.where(acts > 0, dacts.double() + slope, 0.0)
    with running(isa):
        db = ops.mask_gradient_(acts, dacts, slope)
    # The interpreter cuts off what a GPU rounds to bf16.
    rtol = 2**-7 if dtype == torch.bfloat16 else 2**-23
    torch.testing.assert_close(dacts.double(), exact, rtol=rtol, atol=0)
    torch.testing.assert_close(db.double(), exact.sum(0), rtol=1e-5, atol=1e-5)


def test_opcheck_and_bad_input():
    acts, dacts, slope = torch.rand(5, 7), torch.rand(5, 7), torch.rand(7)
    torch.library.opcheck(torch.ops.trustbench.mask_gradient.default, (acts, dacts, slope))
    with pytest.raises(InputError, match=r"dacts\.stride"):
        ops.mask_gradient_(acts, dacts.T.contiguous().T, slope)
