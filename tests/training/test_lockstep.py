"""What the comparison step by step lets pass, and what it does not."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.training.lockstep import chooses_otherwise
from trustbench.sae import SAE, SAEConfig

KINDS = [
    {"activation": "topk", "k": 2, "auxk": 3},
    {"activation": "batchtopk", "k": 2},
    {"activation": "relu"},
    {"activation": "jumprelu"},
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind["activation"])
def sae(request) -> SAE:
    return SAE(SAEConfig(d_in=6, d_sae=20, **request.param)).train()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(9, 6)


DEAD = torch.arange(20) < 5


def test_the_same_choices_and_others(sae, x):
    assert not chooses_otherwise(sae, copy.deepcopy(sae), x, DEAD)
    moved = copy.deepcopy(sae)
    moved.b_enc.data += torch.randn(20)
    assert chooses_otherwise(sae, moved, x, DEAD)


def test_a_wrong_choice_is_an_error(sae, x, monkeypatch):
    """An entry that is not there, far from its boundary."""
    encode = SAE.encode_sparse

    def without_the_largest(sae, x):
        code = encode(sae, x)
        values = code.values.clone()
        values.view(-1)[values.argmax()] = 0
        return code._replace(values=values)

    monkeypatch.setattr(SAE, "encode_sparse", without_the_largest)
    with pytest.raises(AssertionError, match="rounding does not explain"):
        chooses_otherwise(sae, copy.deepcopy(sae), x, DEAD)


def test_an_entry_at_its_threshold_may_go_either_way():
    one = SAE(SAEConfig(d_in=6, d_sae=20, activation="jumprelu")).train()
    x = one.W_enc.data[:1].clone()  # its own feature's pre-activation is 1 within rounding
    one.log_threshold.data.fill_(-1e-6)
    other = copy.deepcopy(one)
    other.log_threshold.data.fill_(1e-6)
    assert chooses_otherwise(one, other, x, DEAD)
