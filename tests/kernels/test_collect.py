"""Codes whose size the data tells: too little room, unlucky samples, ties, any order of arrival."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.test_select import inputs
from trustbench.kernels.triton import _collect, _csr, encode_batchtopk, encode_relu


def dense(code, N: int, F: int) -> torch.Tensor:
    """[N, F] of (values, indices, row_offsets); checks that features ascend within a token."""
    values, indices, offsets = code
    rows = torch.arange(N).repeat_interleave(offsets.diff())
    flat = rows * F + indices[: len(rows)]
    assert (flat.diff() > 0).all()
    full = torch.zeros(N * F)
    full[flat] = values[: len(rows)]
    return full.view(N, F)


def batchtopk(x, W, b, k):
    """The N k largest positive pre-activations, by a stable sort."""
    pre = (x.float() @ W.float().T + b).flatten()
    kept = pre.sort(descending=True, stable=True).indices[: len(x) * k]
    full = torch.zeros_like(pre)
    full[kept] = pre[kept]
    return torch.where(full <= 0, 0.0, full).view(len(x), -1)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_a_code_fuller_than_expected_costs_a_second_matmul(monkeypatch, kind):
    monkeypatch.setattr(encode_relu, "_LEAST", 1)
    runs, collect = [], encode_relu.collect
    monkeypatch.setattr(encode_relu, "collect", lambda *a: runs.append(a[-1]) or collect(*a))
    x, W, b = inputs(140, 24, 260, kind)  # several tiles both ways
    found = dense(encode_relu.encode_relu(x, W, b, None), 140, 260)
    torch.testing.assert_close(found, (x.float() @ W.float().T + b).relu(), rtol=1e-5, atol=1e-5)
    assert runs == [140 * 260 // 16, int((found > 0).sum())]


def test_a_padded_code_says_whether_it_is_whole():
    x, W, b = inputs(30, 16, 70)
    exact = encode_relu.encode_relu(x, W, b, None)
    *code, rows, fits = encode_relu.padded(x, W, b, None, 30 * 70)
    assert fits.all()
    assert torch.equal(dense(code, 30, 70), dense(exact, 30, 70))
    nnz = len(exact[0])
    assert torch.equal(rows[:nnz].long(), torch.arange(30).repeat_interleave(exact[2].diff()))
    assert not code[0][nnz:].any()
    _, indices, offsets, _, fits = encode_relu.padded(x, W, b, None, 100)
    assert not fits.any()
    assert offsets[-1] == 100 and (indices < 70).all()  # in bounds all the same


def test_a_long_row_is_counted_in_parts(monkeypatch):
    monkeypatch.setattr(_csr, "_WORDS", 2)
    x, W, b = inputs(7, 16, 330)
    found = dense(encode_relu.encode_relu(x, W, b, None), 7, 330)
    torch.testing.assert_close(found, (x.float() @ W.float().T + b).relu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lowest", [None, torch.ones(1, dtype=torch.int32)])
def test_the_order_of_arrival_does_not_matter(lowest):
    x, W, b = inputs(20, 16, 70)
    entries = _collect.collect(x, W, b, torch.full((1,), -0.5), 20 * 70)
    n = int(entries.total)
    before = _csr.code(entries, 20, 70, n, lowest)
    order = torch.randperm(n)
    shuffled = [t[:n][order] for t in entries[:3]]
    after = _csr.code(_collect.Entries(*shuffled, entries.total), 20, 70, n, lowest)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert (before.row_offsets[-1] == n) == (lowest is None)


@pytest.mark.parametrize("factor", [20.0, 1e-3])
def test_batchtopk_with_a_sample_unlike_the_rest(monkeypatch, factor):
    monkeypatch.setattr(encode_batchtopk, "_SAMPLE", 2)
    x, W, b = inputs(60, 24, 300)
    b = 0 * b
    x[::30] *= factor  # the tokens that are sampled: too few candidates, or too many
    wanted = batchtopk(x, W, b, 3)
    found = encode_batchtopk.encode_batchtopk(x, W, b, 3)
    assert len(found[0]) == 180
    torch.testing.assert_close(dense(found, 60, 300), wanted, rtol=1e-5, atol=1e-5)
    assert not encode_batchtopk.padded(x, W, b, 3)[-1].any()
    monkeypatch.setattr(encode_batchtopk, "_room", lambda *_: 50)
    found = encode_batchtopk.encode_batchtopk(x, W, b, 3)
    torch.testing.assert_close(dense(found, 60, 300), wanted, rtol=1e-5, atol=1e-5)


def test_batchtopk_pads_what_it_knows_the_size_of():
    x, W, b = inputs(40, 24, 300)
    exact = encode_batchtopk.encode_batchtopk(x, W, b, 5)
    *code, right = encode_batchtopk.padded(x, W, b, 5)
    assert right.all()
    assert torch.equal(dense(code[:3], 40, 300), dense(exact, 40, 300))
    few = b - 2.3  # fewer than N k are positive
    exact = encode_batchtopk.encode_batchtopk(x, W, few, 5)
    *code, right = encode_batchtopk.padded(x, W, few, 5)
    assert right.all() and 0 < len(exact[0]) < 200
    assert torch.equal(dense(code[:3], 40, 300), dense(exact, 40, 300))


def test_batchtopk_cuts_ties_by_token_and_feature_and_knows_when_it_cannot():
    x, W, b = inputs(9, 16, 70)
    x, W = x.round(), (4 * W.float()).round().bfloat16()
    b = torch.zeros(70)
    wanted = batchtopk(x, W, b, 4)
    assert (wanted == wanted[wanted > 0].min()).sum() > 1
    assert torch.equal(dense(encode_batchtopk.encode_batchtopk(x, W, b, 4), 9, 70), wanted)
    for equal in (70, 10):  # features whose pre-activations are equal on all tokens
        b[:equal] = 2.0
        same = torch.zeros_like(x), W, b
        _, _, offsets, _, right = encode_batchtopk.padded(*same, 4)
        assert not right.any() and offsets[-1] <= 36  # in bounds all the same
        found = encode_batchtopk.encode_batchtopk(*same, 4)
        assert found[2].tolist() == [min(36, equal * n) for n in range(10)]
        b[:] = 0.0


def test_too_many_entries_are_refused(monkeypatch):
    x, W, b = inputs(2, 16, 70)
    with pytest.raises(NotImplementedError, match="keeps up to 2"):
        encode_batchtopk.encode_batchtopk(x, W, b, 2**30)
    monkeypatch.setattr(encode_relu, "MOST", 10)
    with pytest.raises(NotImplementedError, match="at most 10"):
        encode_relu.encode_relu(x, W, b, None)
    monkeypatch.setattr(encode_batchtopk, "MOST", 10)
    with pytest.raises(NotImplementedError, match="holds up to 10"):
        encode_batchtopk.encode_batchtopk(x, W, b + 5, 5)
