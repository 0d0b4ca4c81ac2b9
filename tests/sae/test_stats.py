"""fvu, L0, firing counts."""

from __future__ import annotations

import pytest
import torch

from trustbench.ops import CSRCode, TopKCode
from trustbench.sae.stats import firing_counts, fvu, l0


def test_fvu():
    x = torch.randn(50, 6)
    assert fvu(x, x) == 0
    assert fvu(x, x.mean(0).expand_as(x)).item() == pytest.approx(1)
    assert fvu(3 * x, 3 * x.mean(0).expand_as(x)).item() == pytest.approx(1)


def test_counts_leave_out_zeros():
    topk = TopKCode(
        torch.tensor([[2.0, 1.0], [1.0, 0.0]]), torch.tensor([[3, 1], [3, 0]], dtype=torch.int32)
    )
    assert firing_counts(topk, 5).tolist() == [0, 1, 0, 2, 0]
    assert l0(topk) == 1.5
    csr = CSRCode(
        torch.tensor([0, 1, 1, 3]), torch.tensor([4, 0, 4], dtype=torch.int32), torch.ones(3)
    )
    assert firing_counts(csr, 5).tolist() == [1, 0, 0, 0, 2]
    assert l0(csr) == 1
