"""Which slots of the buffer's pool hold what, and which tokens go out next."""

from __future__ import annotations

import random

import numpy as np
import pytest

from trustbench import _C


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
