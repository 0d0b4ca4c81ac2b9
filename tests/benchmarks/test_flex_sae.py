"""flex-sae's loss formulation is the loss it says."""

from __future__ import annotations

import torch

from benchmarks.peers.flex_sae import Loss


def test_its_gradients_are_those_of_autograd():
    n, k, d, F = 6, 11, 5, 20  # k over a chunk's end
    indices = torch.rand(n, F).argsort(1)[:, :k]
    W, b = torch.randn(F, d, dtype=torch.float64), torch.randn(d, dtype=torch.float64)
    values = torch.rand(n, k, dtype=torch.float64)
    x = torch.randn(n, d, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (W, values, b)]
    loss = Loss.apply(indices, W, values, b, x)
    wanted = ((values[:, :, None] * W[indices]).sum(1) + b - x).square().mean()
    torch.testing.assert_close(loss, wanted)
    found, exact = (torch.autograd.grad(3 * y, inputs) for y in (loss, wanted))
    torch.testing.assert_close(found, exact)
