"""Where training starts."""

from __future__ import annotations

import pytest
import torch

from trustbench.errors import InputError
from trustbench.sae import SAE, SAEConfig
from trustbench.sae.init import geometric_median, initial_b_dec, initialise, measure_input_scale


def test_geometric_median_minimises_the_mean_distance():
    x = torch.randn(500, 6) ** 3
    median = geometric_median(x)

    def distance(point):
        return (x - point).norm(dim=1).mean()

    for _ in range(50):
        assert distance(median) <= distance(median + 0.05 * torch.randn(6)) + 1e-5
    assert distance(median) < distance(x.mean(0))


def test_geometric_median_with_an_outlier_and_with_equal_rows():
    x = torch.cat([torch.zeros(9, 3), torch.full((1, 3), 1e6)])
    assert geometric_median(x).norm() < 1
    assert torch.equal(geometric_median(torch.ones(4, 3)), torch.ones(3))


def test_b_dec_and_scale():
    x = torch.randn(100, 6) + 2
    torch.testing.assert_close(initial_b_dec(x, "mean"), x.mean(0))
    assert (initial_b_dec(x, "zero") == 0).all()
    scale = measure_input_scale(x)
    assert (x * scale).norm(dim=1).mean().item() == pytest.approx(6**0.5)
    with pytest.raises(InputError, match="b_dec_init='median'"):
        initial_b_dec(x, "median")
    with pytest.raises(InputError, match="mean norm 0"):
        measure_input_scale(torch.zeros(3, 6))


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu"])
def test_initialise_fits_scale_bias_and_encoder(activation):
    sae = SAE(SAEConfig(d_in=24, d_sae=400, k=16, activation=activation, normalize="expected_norm"))
    x = 30 * torch.randn(500, 8) @ torch.randn(8, 24) + 50
    initialise(sae, x)
    scaled = x * sae.input_scale
    assert scaled.norm(dim=1).mean().item() == pytest.approx(24**0.5, rel=1e-4)
    torch.testing.assert_close(sae.b_dec.data, geometric_median(scaled))

    def error(factor: float) -> float:
        with torch.no_grad():
            x_hat = factor * (sae.decode(sae.encode(x)) * sae.input_scale - sae.b_dec) + sae.b_dec
        return (scaled - x_hat).square().sum().item()

    assert error(1.0) <= min(error(0.9), error(1.1), error(0.0))
    # Tied up to the scale.
    ratio = sae.W_enc / sae.W_dec
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
