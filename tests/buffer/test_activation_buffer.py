"""ActivationBuffer: every token once, well mixed, bounded, resumable."""

from __future__ import annotations

import json

import pytest
import torch

from trustbench.buffer import ActivationBuffer
from trustbench.errors import InputError, NonFiniteError


def numbered(start: int, n: int) -> dict[str, torch.Tensor]:
    """Rows that hold their own number, at two hook points."""
    ids = torch.arange(start, start + n, dtype=torch.float32)
    return {"a": ids[:, None].expand(n, 3).clone(), "b": ids[:, None].expand(n, 2).clone()}


def run(capacity: int, total: int, put: int, take: int, seed: int = 0) -> list[list[int]]:
    """Feed numbered tokens through a buffer kept full; the batches of numbers that come out."""
    batches = []
    with ActivationBuffer({"a": 3, "b": 2}, capacity, seed=seed) as buffer:
        while buffer.tokens_out < total:
            while buffer.space >= put and buffer.tokens_in < total:
                buffer.put(numbered(buffer.tokens_in, min(put, total - buffer.tokens_in)))
            batch = buffer.take(min(take, len(buffer)))
            assert torch.equal(batch["a"][:, 0], batch["b"][:, 0])  # one order everywhere
            batches.append(batch["a"][:, 0].long().tolist())
    return batches


@pytest.mark.parametrize(
    ("capacity", "total", "put", "take"), [(64, 1000, 10, 8), (100, 987, 33, 100), (7, 50, 1, 3)]
)
def test_every_token_exactly_once(capacity, total, put, take):
    batches = run(capacity, total, put, take)
    assert sorted(t for batch in batches for t in batch) == list(range(total))


def test_order_depends_on_the_seed_only():
    assert run(64, 500, 10, 8) == run(64, 500, 10, 8)
    assert run(64, 500, 10, 8) != run(64, 500, 10, 8, seed=1)


def test_resume_is_exact():
    buffer = ActivationBuffer({"a": 3, "b": 2}, 64, dtype={"a": torch.bfloat16, "b": torch.float32})
    for _ in range(5):
        buffer.put(numbered(buffer.tokens_in, 20))
        buffer.take(10)
    state = buffer.state_dict()
    meta = json.loads(json.dumps(state["meta"]))
    other = ActivationBuffer(
        {"a": 3, "b": 2}, 64, dtype={"a": torch.bfloat16, "b": torch.float32}, seed=9
    )
    other.load_state_dict({"tensors": state["tensors"], "meta": meta})
    for _ in range(5):
        for b in (buffer, other):
            b.put(numbered(b.tokens_in, 5))
        mine, theirs = buffer.take(9), other.take(9)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises(InputError, match="another capacity"):
        ActivationBuffer({"a": 3, "b": 2}, 65).load_state_dict(state)


def test_memory_is_bounded_and_stated():
    buffer = ActivationBuffer({"a": 3, "b": 2}, 100, dtype={"a": torch.bfloat16, "b": torch.float32})
    assert buffer.nbytes == 100 * 3 * 2 + 100 * 2 * 4
    buffer.put(numbered(0, 100))
    assert buffer.space == 0 and len(buffer) == 100 and buffer.nbytes == 1400
    assert buffer.take(1)["a"].dtype == torch.bfloat16
    assert len(buffer.peek(1000)["a"]) == 99 and len(buffer) == 99


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_rows_are_named_and_nothing_is_stored(value):
    buffer = ActivationBuffer({"a": 3, "b": 2}, 64)
    buffer.put(numbered(0, 10))
    acts = numbered(10, 10)
    acts["b"][4, 1] = value
    with pytest.raises(
        NonFiniteError, match=r"b: NaN or Inf in 1 of 10 rows, first at row 4 \(token 14"
    ):
        buffer.put(acts)
    assert len(buffer) == 10


def test_bad_input_is_named():
    buffer = ActivationBuffer({"a": 3, "b": 2}, 8)
    with pytest.raises(InputError, match=r"expected the hook points \['a', 'b'\]"):
        buffer.put({"a": torch.zeros(1, 3)})
    with pytest.raises(InputError, match=r"acts\['b'\]\.shape=\[2, 2\]: expected \[1, 2\]"):
        buffer.put({"a": torch.zeros(1, 3), "b": torch.zeros(2, 2)})
    with pytest.raises(InputError, match="at most space=8"):
        buffer.put(numbered(0, 9))
    with pytest.raises(InputError, match="n=1: expected an integer in"):
        buffer.take(1)
    with pytest.raises(InputError, match="dtype"):
        buffer.put({"a": torch.zeros(1, 3, dtype=torch.int64), "b": torch.zeros(1, 2)})
    with pytest.raises(InputError, match="capacity=0"):
        ActivationBuffer({"a": 3}, 0)
    with pytest.raises(InputError, match="dtype of a"):
        ActivationBuffer({"a": 3}, 8, dtype=torch.float64)


def test_batches_drain_the_buffer():
    buffer = ActivationBuffer({"a": 3, "b": 2}, 32)
    buffer.put(numbered(0, 30))
    assert [len(b["a"]) for b in buffer.batches(8)] == [8, 8, 8, 6]


def test_a_batch_can_be_written_over():
    fresh, reusing = (ActivationBuffer({"a": 3, "b": 2}, 64) for _ in range(2))
    batch = None
    for _ in range(4):
        for buffer in (fresh, reusing):
            buffer.put(numbered(buffer.tokens_in, 16))
        wanted, before = fresh.take(8), batch
        batch = reusing.take(8, batch)
        assert before is None or batch["a"].data_ptr() == before["a"].data_ptr()
        assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    for out in (
        {"a": batch["a"]},
        {"a": batch["a"][:7], "b": batch["b"]},
        {"a": batch["a"].double(), "b": batch["b"]},
        {"a": torch.empty(3, 8).T, "b": batch["b"]},
    ):
        with pytest.raises(
            InputError, match=r"out=.[ab].: expected a contiguous torch.float32 tensor"
        ):
            reusing.take(8, out)
    assert reusing.tokens_out == 32


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_any_floating_dtype_is_stored_as_asked(kind, stored):
    rows = torch.randn(20, 8, 3).transpose(0, 1)[3].to(kind)  # not contiguous
    buffer = ActivationBuffer({"a": 3}, 20, dtype=stored)
    buffer.put({"a": rows})
    assert torch.equal(buffer.peek(20)["a"], rows.to(stored))
    rows[3, 1] = float("inf")
    other = ActivationBuffer({"a": 3}, 20, dtype=stored)
    with pytest.raises(NonFiniteError, match="1 of 20 rows, first at row 3"):
        other.put({"a": rows})
    assert len(other) == 0
