"""Features with very many entries, and moments in bf16."""

from __future__ import annotations

import pytest
import torch

from trustbench import ops
from trustbench.kernels.triton import (
    _feature,
    _launch,
    adam,
    transpose_code,
)
from trustbench.ops.parameters import Moments, Weights


def hot_code(N: int, F: int, k: int):
    """A code whose feature 1 is active on every token."""
    others = torch.rand(N, F - 2).argsort(1)[:, : k - 1] + 2
    indices = torch.cat([torch.ones(N, 1), others], 1).to(torch.int32)
    return torch.rand(N, k), indices


@pytest.mark.parametrize("l1_form", ["sum", "decoder_norm"])
def test_a_long_feature_is_shared_out(monkeypatch, l1_form):
    N, d, F, k = 45, 24, 12, 3
    values, indices = hot_code(N, F, k)
    x, grad = torch.randn(N, d), torch.randn(N, d)
    with ops.use("reference"):
        code = ops.transpose_code(indices, F)
    weights = Weights(torch.randn(F, d), torch.randn(F, d), torch.randn(F))
    options = {"step": 3, "lr": 1e-2, "eps": 1e-3, "unit_norm": False, "l1": 0.3, "l1_form": l1_form}
    results = []
    for implementation, long in (("reference", 512), ("triton", 8), ("triton", 512)):
        monkeypatch.setattr(_feature, "LONG", long)
        mine = Weights(*(w.clone() for w in weights))
        moments = Moments.zeros_like(mine)
        with ops.use(implementation):
            through = ops.sparse_adam_(mine, values, code, x, grad, moments, **options)
            dW, db = ops.weight_grad(values, indices, x, F)
            norm, _ = ops.sparse_grad_norm(weights, values, code, x, grad)
        results.append([*mine, *moments, through, dW, db, norm])
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_no_code_has_more_chunks_than_reserved():
    for counts in ([513] * 9, [1024, 1, 0, 5000], [512] * 4, [0, 0], [4097]):
        offsets = torch.tensor([0, *counts]).cumsum(0)
        ends = _feature.chunk_ends(offsets)
        assert int(ends[-1]) <= _feature.most_chunks(int(offsets[-1]), len(counts))


def test_transposing_does_not_depend_on_the_order_of_arrival(monkeypatch):
    _, indices = hot_code(200, 40, 5)
    with ops.use("reference"):
        expected = ops.transpose_code(indices, 40)
    place = transpose_code.place_kernel

    class Shuffled:
        """Arrival as a GPU may have it: any order within a feature."""

        def __getitem__(self, grid):
            def launch(indices, values, offsets, arrival, *rest, **options):
                for feature in range(40):
                    mine = (indices.flatten() == feature).nonzero().flatten()
                    arrival[mine] = arrival[mine][torch.randperm(len(mine))]
                return place[grid](indices, values, offsets, arrival, *rest, **options)

            return launch

    monkeypatch.setattr(transpose_code, "place_kernel", Shuffled())
    for a, e in zip(transpose_code.transpose_code(indices, 40), expected, strict=True):
        assert torch.equal(a, e)


def test_bf16_moments_are_right_in_the_mean():
    rows, d = 64, 64
    param, grad = torch.zeros(rows, d), torch.ones(rows, d)
    m, v = (torch.full((rows, d), 0.5).bfloat16() for _ in range(2))
    means = []
    for step in range(1, 9):
        scalars = ops.step_scalars(step, 0.0, 0.9, 0.999)
        adam.adam(param, grad, m, v, scalars, 0.9, 0.999, 1e-8, False)
        means.append(v.float().mean().item())
    exact = 1 - 0.5 * 0.999**8
    # Rounded to nearest, a step of 0.0005 from 0.5 in steps of 2**-8 would never arrive.
    assert means[-1] == pytest.approx(exact, abs=4e-4)
    assert v.max() < 0.55 and (v.float() * 256 % 1 == 0).all()


def test_rows_too_long_for_the_kernels_are_refused():
    with pytest.raises(NotImplementedError, match=r"d_in=16385.*at most 16384"):
        _launch.row_shape(16385)
