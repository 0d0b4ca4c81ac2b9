"""The C++ core of the buffer: which slots, and rows into and out of them, on every processor."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from trustbench import _C
from trustbench.buffer.activation_buffer import _KINDS


@pytest.fixture(params=_C.isa_names())
def isa(request):
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


# ------------------------------------------------------------------ slots


def test_any_sequence_of_puts_and_takes_keeps_every_token_once():
    rng = random.Random(0)
    for capacity in (1, 2, 7, 64, 1000):
        slots, held, put, taken = _C.Slots(capacity, 5), {}, 0, []
        for _ in range(300):
            if rng.random() < 0.5:
                n = rng.randint(0, capacity - len(held))
                for slot in slots.offer(n).tolist():
                    assert slot not in held  # nothing is written over
                    held[slot] = put
                    put += 1
                slots.commit(n)
            else:
                n = rng.randint(0, len(held))
                taken += [held.pop(slot) for slot in slots.take(n).tolist()]
            assert slots.size == len(held)
            assert sorted(slots.occupied(capacity).tolist()) == sorted(held)
        assert sorted([*taken, *held.values()]) == list(range(put))


def test_an_offer_that_is_not_committed_leaves_nothing_behind():
    slots = _C.Slots(10, 0)
    first = slots.offer(4).tolist()
    assert slots.size == 0 and slots.offer(4).tolist() == first


def assert_uniform(counts):
    """Pearson's chi-square lies within eight standard deviations of its mean."""
    expected, freedom = counts.mean(), counts.size - 1
    assert ((counts - expected) ** 2).sum() / expected < freedom + 8 * (2 * freedom) ** 0.5


def test_draws_are_uniform():
    """Which tokens a take draws, and in which order."""
    pool, n, rounds = 12, 5, 4000
    counts = np.zeros((n, pool))
    for seed in range(rounds):
        slots = _C.Slots(pool, seed)
        slots.commit(pool)
        counts[np.arange(n), slots.take(n)] += 1
    for place in (counts.sum(0), *counts):
        assert_uniform(place)
    pairs = np.zeros((pool, pool))
    slots = _C.Slots(pool, 1)
    slots.commit(pool)
    last = None
    for _ in range(20_000):  # consecutive draws of one stream are independent
        (slot,) = slots.take(1).tolist()
        slots.commit(1)
        if last is not None:
            pairs[last, slot] += 1
        last = slot
    assert_uniform(pairs)


def test_the_generator_is_the_published_one():
    """xoshiro256++ after splitmix64(0), from the authors' formulas in Python's integers."""
    mask = 2**64 - 1

    def rotated(x, by):
        return (x << by | x >> 64 - by) & mask

    state, seed = [], 0
    for _ in range(4):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        state.append(z ^ z >> 31)
    slots = _C.Slots(5, 0)
    assert list(slots.random) == state
    slots.commit(5)
    slots.take(1)
    t = state[1] << 17 & mask
    state[2] ^= state[0]
    state[3] ^= state[1]
    state[1] ^= state[2]
    state[0] ^= state[3]
    state[2] ^= t
    state[3] = rotated(state[3], 45)
    assert list(slots.random) == state


def test_a_restored_pool_draws_the_same_tokens():
    one = _C.Slots(20, 3)
    one.commit(15)
    one.take(6)
    order = one.occupied(20).tolist()
    other = _C.Slots(20, 9)
    other.restore(len(order), one.random)
    for n in (2, 3, 1):
        assert [order[s] for s in other.take(n).tolist()] == one.take(n).tolist()


def test_bad_arguments_are_refused():
    for capacity in (0, -1, 2**32):
        with pytest.raises(ValueError, match="capacity"):
            _C.Slots(capacity, 0)
    slots = _C.Slots(4, 0)
    for call in (lambda: slots.offer(5), lambda: slots.commit(-1), lambda: slots.take(1)):
        with pytest.raises(ValueError, match="tokens"):
            call()
    with pytest.raises(ValueError, match="restore"):
        slots.restore(5, slots.random)
    with pytest.raises(ValueError, match="not all 0"):
        slots.restore(1, [0, 0, 0, 0])
    with pytest.raises(ValueError, match="row kind"):
        _C.put_rows(slots, 0, 3, 0, 0, 0, 1, 1)
    with pytest.raises(ValueError, match="float16"):
        _C.put_rows(slots, 0, 2, 0, 1, 0, 1, 1)


# ------------------------------------------------------------------ rows


PAIRS = [
    (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32),
]  # fmt: skip


def put(rows, pool, slots, threads=1):
    return _C.put_rows(
        slots, rows.data_ptr(), _KINDS[rows.dtype], pool.data_ptr(), _KINDS[pool.dtype], *rows.shape,
        threads,
    )  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (70, 64), (33, 37), (5, 130), (0, 8)])
@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_in_and_out_are_the_rows(isa, pair, n, d, offset, threads):
    source, stored = pair
    rows = torch.randn(n, d).to(source)
    # A pool that does not start where a vector may be written.
    pool = torch.zeros(100 * d + offset, dtype=stored)[offset:].view(100, d)
    slots = _C.Slots(100, 1)
    slots.commit(90)
    slots.take(80)
    places = torch.from_numpy(slots.offer(n))
    assert put(rows, pool, slots, threads) == (0, -1)
    wanted = torch.zeros_like(pool).index_copy_(0, places, rows.to(stored))
    assert torch.equal(pool, wanted)
    out = torch.zeros(n * d + offset, dtype=stored)[offset:].view(n, d)
    order = places.numpy()
    _C.take_rows(
        pool.data_ptr(), order.ctypes.data, n, d * pool.element_size(), out.data_ptr(), threads
    )
    assert torch.equal(out, rows.to(stored))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -float("nan")])
@pytest.mark.parametrize("column", [0, 63, 64, 68])
def test_rows_that_are_not_finite_are_counted(isa, pair, value, column):
    source, stored = pair
    rows = torch.randn(80, 69).to(source)
    rows[[77, 41], column] = value
    assert put(rows, torch.zeros(80, 69, dtype=stored), _C.Slots(80, 0), 2) == (2, 41)


def test_what_only_overflows_when_it_is_narrowed_is_counted(isa):
    for width in (1, 33):
        rows = torch.zeros(4, width)
        rows[2, -1] = 3.4e38  # finite in fp32, above bf16's largest number
        assert put(rows, torch.zeros(4, width, dtype=torch.bfloat16), _C.Slots(4, 0)) == (1, 2)
        largest = torch.full((4, width), torch.finfo(torch.bfloat16).max)
        assert put(largest, torch.zeros(4, width, dtype=torch.bfloat16), _C.Slots(4, 0)) == (0, -1)
