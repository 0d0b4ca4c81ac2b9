"""Selection where the usual sizes do not reach: many parts, many waves, long codes, full buckets."""

from __future__ import annotations

import pytest
import torch

from trustbench.kernels.triton import (
    _dense,
    _matmul,
    _select,
    encode_topk,
)


def inputs(N: int, d: int, F: int, kind: torch.dtype = torch.bfloat16):
    x, W = torch.randn(N, d).to(kind), (torch.randn(F, d) / d**0.5).to(kind)
    return x, W, 0.1 * torch.randn(F)


def expected(x, W, b, k):
    """Values and features by a stable sort of what the kernel multiplies."""
    pre = x.float() @ W.float().T + b
    top = pre.sort(dim=1, descending=True, stable=True)
    return top.values[:, :k].relu(), top.indices[:, :k].to(torch.int32)


def assert_selected(x, W, b, k):
    values, indices = encode_topk.encode_topk(x, W, b, k)
    wanted, _ = expected(x, W, b, k)
    torch.testing.assert_close(values, wanted, rtol=2**-17, atol=2**-17)
    pre = x.float() @ W.float().T + b
    torch.testing.assert_close(pre.gather(1, indices.long()).relu(), wanted, rtol=2**-17, atol=2**-17)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("F", [700, 900])
def test_a_row_longer_than_the_registers(monkeypatch, F):
    monkeypatch.setattr(_select, "_HELD", 64)
    assert encode_topk.plan(F, 5) is not None
    assert_selected(*inputs(9, 64, F), 5)  # candidates, in parts
    assert_selected(*inputs(9, 64, F, torch.float32), 5)  # pre-activations, in parts
    x, W, _ = inputs(5, 64, F)
    ties = (x.round(), (4 * W.float()).round().bfloat16(), torch.zeros(F))
    values, indices = encode_topk.encode_topk(*ties, 5)
    assert torch.equal(indices, expected(*ties, 5)[1])
    assert torch.equal(values, expected(*ties, 5)[0])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_more_tiles_than_one_group(kind):
    assert_selected(*inputs(1040, 16, 260, kind), 1)  # 9 tiles of tokens, 3 of features


def test_rows_that_overflow_a_bucket_are_done_again_in_waves(monkeypatch):
    monkeypatch.setattr(encode_topk, "_FIRST_WAVE", 2)
    monkeypatch.setattr(_dense, "AT_ONCE", 0)  # 16 rows at once
    done = []
    select = _select.select

    def counted(source, *args, **kwargs):
        done.append((len(source), kwargs.get("listed") is not None))
        return select(source, *args, **kwargs)

    monkeypatch.setattr(_select, "select", counted)
    x, W, b = inputs(40, 64, 515)
    # The features 0, 8, 16, ... of the first tile share a bucket: on most rows all of its four
    # largest are wanted, and more than are kept.
    b[:64:8] += 20 * torch.rand(8) + 10
    assert encode_topk.plan(515, 4).M < 4
    assert_selected(x, W, b, 4)
    assert done == [(40, False), (2, True), (16, True), (16, True), (6, True)]


def test_dense_pre_activations_in_parts(monkeypatch):
    monkeypatch.setattr(_dense, "AT_ONCE", 0)
    assert_selected(*inputs(37, 20, 70, torch.float32), 9)


@pytest.mark.parametrize("k", [7, 30])
def test_a_code_too_long_for_the_sorting_kernel(monkeypatch, k):
    monkeypatch.setattr(_select, "SORTED", 4)
    assert_selected(*inputs(5, 16, 70, torch.float32), k)


def test_tf32_follows_torchs_own_switch():
    x, W, b = inputs(5, 16, 70, torch.float32)
    assert _matmul.precision(x) == "ieee"
    torch.set_float32_matmul_precision("high")
    try:
        assert _matmul.precision(x) == "tf32"
        assert_selected(x, W, b, 3)  # the interpreter multiplies exactly: this runs the branch
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_plan_keeps_more_of_fewer_buckets_and_gives_up():
    assert encode_topk.plan(32768, 64) == (2, 16)
    assert encode_topk.plan(32768, 64, BN=256) == (3, 32)
    assert encode_topk.plan(32768, 8) == (1, 16)
    assert encode_topk.plan(32768, 1024) == (6, 16)
    assert encode_topk.plan(32768, 4096) is None
    assert encode_topk.plan(300, 64) is None
