"""SAEConfig: what it refuses, and how it says so."""

from __future__ import annotations

import pytest

from trustbench.errors import InputError
from trustbench.sae import SAEConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_sae": 0}, "d_sae=0: expected an integer >= 1"),
        ({"d_in": 8, "d_sae": 16, "k": 17}, r"k=17: expected an integer in \[1, d_sae=16\]"),
        ({"d_sae": 16, "k": 0}, "k=0: expected an integer >= 1"),
        ({"d_sae": 16, "k": 2.5}, r"k=2\.5"),
        ({"d_sae": 64, "activation": "gelu"}, "activation='gelu': expected one of topk, batchtopk"),
        ({"d_sae": 64, "l1_coefficient": -1.0}, "l1_coefficient=-1.0"),
        ({"d_sae": 64, "bandwidth": 0.0}, "bandwidth=0.0"),
        ({"d_sae": 64, "normalize": "layer"}, "normalize='layer'"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        SAEConfig(**fields)


def test_round_trip_and_typo():
    config = SAEConfig(d_in=8, d_sae=64, k=4, activation="batchtopk")
    assert SAEConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match=r"no field 'd_sea'; did you mean 'd_sae'\?"):
        SAEConfig.from_dict({"d_sea": 64})


@pytest.mark.parametrize(("d_in", "expected"), [(1024, 512), (256, 128), (100, 64), (2, 1)])
def test_auxk_default_is_the_power_of_two_nearest_half_the_width(d_in, expected):
    assert SAEConfig(d_in=d_in, d_sae=4096).auxk_features == expected
    assert SAEConfig(d_in=d_in, d_sae=4096, auxk=0).auxk_features == 0
    assert SAEConfig(d_in=d_in, d_sae=4096, activation="relu").auxk_features == 0
