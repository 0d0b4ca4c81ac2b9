"""The pool by torch's own indexing: the same tokens as the C++ core, wherever nvcc was not found."""

from __future__ import annotations

import pytest
import torch

from trustbench.buffer import ActivationBuffer, Spill, activation_buffer
from trustbench.buffer.torch_pool import TorchPool
from trustbench.errors import InputError, NonFiniteError
from trustbench.ops import dispatch

WIDTHS = {"a": 3, "b": 40}


@pytest.fixture
def pretended(monkeypatch):
    """Buffers whose pool is a TorchPool, on the CPU."""

    def make(*_, **__):
        return TorchPool(WIDTHS, dict.fromkeys(WIDTHS, torch.bfloat16), 64, 0, torch.device("cpu"))

    def buffer():
        with monkeypatch.context() as patch:
            patch.setattr(activation_buffer, "NativePool", make)
            return ActivationBuffer(WIDTHS, 64, dtype=torch.bfloat16)

    return buffer


def acts(n: int, seed: int) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, d, generator=draws) for name, d in WIDTHS.items()}


def turns(buffer: ActivationBuffer, first: int, count: int) -> list[dict[str, torch.Tensor]]:
    batches = []
    for i in range(first, first + count):
        while buffer.space >= 20:
            buffer.put(acts(20, i))
        batches.append(buffer.take(16))
    return batches


def test_it_hands_out_what_the_core_does_and_resumes(pretended):
    mine, core, resumed = pretended(), ActivationBuffer(WIDTHS, 64, dtype=torch.bfloat16), pretended()
    for one, other in zip(turns(mine, 0, 6), turns(core, 0, 6), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in WIDTHS)
    sample, wanted = mine.peek(9), core.peek(9)
    assert all(torch.equal(sample[name], wanted[name]) for name in WIDTHS)
    state = core.state_dict()  # one core's state is the other's
    resumed.load_state_dict({"meta": state["meta"], "tensors": dict(state["tensors"])})
    for one, other in zip(turns(resumed, 6, 4), turns(core, 6, 4), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in WIDTHS)
    assert resumed.nbytes == core.nbytes and resumed.tokens_out == core.tokens_out


def test_rows_that_are_not_finite_are_told_later(pretended):
    buffer = pretended()
    buffer.put(acts(4, 0))
    buffer.check_finite()
    bad = acts(4, 1)
    bad["b"][2, 7] = float("inf")
    buffer.put(bad)
    with pytest.raises(NonFiniteError, match="activations of b: NaN or Inf in 1 rows"):
        buffer.check_finite()
    buffer.check_finite()


def test_states_that_it_cannot_hold_are_refused(pretended):
    separate = ActivationBuffer(WIDTHS, 64, dtype=torch.bfloat16, one_order=False)
    with pytest.raises(InputError, match="several orders, which need"):
        pretended().load_state_dict(separate.state_dict())
    other = ActivationBuffer(WIDTHS, 64, dtype=torch.float32)
    other.put(acts(5, 0))
    with pytest.raises(InputError, match="state of a"):
        pretended().load_state_dict(other.state_dict())


def test_without_the_cuda_module_tiers_say_what_they_need(monkeypatch):
    monkeypatch.setattr(dispatch, "_load", lambda name: None)
    dispatch._warn_missing.cache_clear()
    with (
        pytest.warns(
            RuntimeWarning, match="_cuda is not built: ActivationBuffer moves rows by torch"
        ),
        pytest.raises(NotImplementedError, match="tiers, separate orders and MXFP8 need"),
    ):
        ActivationBuffer(WIDTHS, 64, device="cuda", spill=Spill(host_bytes=2**20))
    dispatch._warn_missing.cache_clear()
