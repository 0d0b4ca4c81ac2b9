"""How well batches are mixed: against what is documented, a full shuffle, and the peers' algorithms.

The peers' buffers themselves are measured by benchmarks/test_buffer.py; here stand their algorithms,
by the numbers of the tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.buffer.test_activation_buffer import run
from trustbench.buffer import ActivationBuffer, Spill

POOL, TAKE, DOCUMENT = 4096, 64, 128


def test_mixing_is_what_the_documentation_says():
    """A token waits C / n batches on average, geometrically; documents are spread accordingly."""
    capacity, take, document = 4096, 64, 128
    batches = run(capacity, 65536, take, take)
    steady = batches[len(batches) // 4 : len(batches) * 3 // 4]
    # Batch number i goes out after capacity + i * take tokens came in.
    waits = torch.tensor(
        [
            i - (token - capacity) / take
            for i, batch in enumerate(batches)
            for token in batch
            if batch in steady
        ]
    )
    expected = capacity / take
    assert waits.mean().item() == pytest.approx(expected, rel=0.05)
    assert waits.std().item() == pytest.approx(expected, rel=0.10)  # geometric: std = mean
    # Pairs of one document within a batch, against a full shuffle of a pool of `capacity`.
    pairs = sum(
        sum(c * (c - 1) / 2 for c in torch.bincount(torch.tensor(b) // document).tolist())
        for b in steady
    ) / len(steady)
    # For geometric waits, two tokens of one document meet with probability about n / (2 C).
    meet = take / (2 * capacity)
    in_document = document * (document - 1) / 2
    documents_per_batch_of_input = take / document
    assert pairs == pytest.approx(meet * in_document * documents_per_batch_of_input, rel=0.25)
    # Without mixing, every pair of the batch would be of one document.
    assert pairs < 0.02 * take * (take - 1) / 2


def test_neighbours_lie_as_far_apart_as_in_a_full_shuffle_of_the_pool():
    """Farther: a token waits as many batches as the pool holds on average, not at most."""
    capacity, take = 2048, 64
    batches = run(capacity, 32768, take, take)
    steady = torch.tensor([b for b in batches[len(batches) // 4 : len(batches) * 3 // 4]])
    mine = steady.diff(dim=1).abs().float().median().item()
    shuffled = torch.randperm(capacity).diff().abs().float().median().item()
    assert mine > 1.8 * shuffled
    # Neighbours in the text do not stay neighbours.
    assert (steady.diff(dim=1).abs() == 1).float().mean().item() < 4 / capacity


def ours(pool: int, take: int, spill: Spill) -> Iterator[Tensor]:
    start = 0
    with ActivationBuffer({"a": 1}, pool, spill=spill) as buffer:
        while True:
            while buffer.space >= take:
                tokens = torch.arange(start, start + take, dtype=torch.float32)
                buffer.put({"a": tokens[:, None]})
                start += take
            yield buffer.take(take)["a"][:, 0].long()


def saelens(pool: int, take: int) -> Iterator[Tensor]:
    """Shuffle a full buffer, hand out half of it, fill it up again (mixing_buffer.py)."""
    held, start = torch.empty(0, dtype=torch.int64), 0
    while True:
        missing = pool - len(held)
        held = torch.cat([held, torch.arange(start, start + missing)])
        start += missing
        held = held[torch.randperm(pool)]
        yield from held[: pool // 2].split(take)
        held = held[pool // 2 :]


def dictionary_learning(pool: int, take: int) -> Iterator[Tensor]:
    """Draw from what is unread until half of it is left, then fill up (buffer.py)."""
    held, start = torch.empty(0, dtype=torch.int64), 0
    while True:
        if len(held) < pool // 2:
            missing = pool - len(held)
            held = torch.cat([held, torch.arange(start, start + missing)])
            start += missing
        order = torch.randperm(len(held))
        yield held[order[:take]]
        held = held[order[take:]]


def quality(batches: Iterator[Tensor], pool: int) -> tuple[float, float]:
    """Pairs of one document among a batch's pairs; median distance of neighbours; steady state."""
    same, distances, count = 0.0, [], 0
    for i in range(24 * pool // TAKE):
        batch = next(batches)
        if i < 8 * pool // TAKE:
            continue
        documents = torch.bincount(batch // DOCUMENT).double()
        same += float((documents * (documents - 1)).sum() / (len(batch) * (len(batch) - 1)))
        distances.append(batch.diff().abs())
        count += 1
    return same / count, float(torch.cat(distances).float().median())


def test_it_mixes_better_than_the_peers_in_the_same_memory():
    same, distance = quality(ours(POOL, TAKE, Spill()), POOL)
    for peer in (saelens, dictionary_learning):
        theirs = quality(peer(POOL, TAKE), POOL)
        assert same < theirs[0] and distance > theirs[1], peer.__name__
    # A full shuffle of one pool after the other: pairs of one document by chance.
    assert same < DOCUMENT / POOL


def test_tiers_mix_nearly_like_a_pool_of_their_size():
    below = Spill(host_bytes=17 * 8192)  # segments of 512 tokens, 2 KiB and a page
    with ActivationBuffer({"a": 1}, POOL, spill=below) as buffer:
        whole = buffer.limit
    assert whole == 3 * POOL
    small = quality(ours(POOL, TAKE, Spill()), whole)
    tiered = quality(ours(POOL, TAKE, below), whole)
    large = quality(ours(whole, TAKE, Spill()), whole)
    assert tiered[0] < 0.65 * small[0] and tiered[1] > 2 * small[1]
    assert tiered[0] < 2.5 * large[0] and tiered[1] > 0.6 * large[1]
