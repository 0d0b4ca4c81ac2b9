"""Activations made in a thread: the same order, errors that arrive, nobody left waiting."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from trustbench.buffer import ActivationBuffer
from trustbench.errors import InputError, NonFiniteError


def numbered(start: int, n: int) -> dict[str, torch.Tensor]:
    return {"a": torch.arange(start, start + n, dtype=torch.float32)[:, None]}


def pieces(total: int, sizes=(10,), wait: float = 0.0):
    start, i = 0, 0
    while start < total:
        n = min(sizes[i % len(sizes)], total - start)
        time.sleep(wait)
        yield numbered(start, n)
        start, i = start + n, i + 1


def order(source, capacity: int = 64, n: int = 8, wait: float = 0.0) -> list[int]:
    tokens = []
    with ActivationBuffer({"a": 1}, capacity) as buffer, buffer.fed_by(source):
        for batch in buffer.batches(n):
            time.sleep(wait)
            tokens += batch["a"][:, 0].long().tolist()
    return tokens


def test_every_token_once_in_an_order_that_timing_does_not_change():
    wanted = order(pieces(500, (10, 3, 17)))
    assert sorted(wanted) == list(range(500))
    assert order(pieces(500, (10, 3, 17), wait=0.001)) == wanted  # a slow producer
    assert order(pieces(200, (10,)), wait=0.002) == order(pieces(200, (10,)))  # a slow consumer


def test_it_is_the_order_of_filling_by_hand():
    tokens = []
    with ActivationBuffer({"a": 1}, 64) as buffer:
        while buffer.tokens_out < 300:
            while buffer.space >= 10 and buffer.tokens_in < 300:
                buffer.put(numbered(buffer.tokens_in, 10))
            tokens += buffer.take(min(8, len(buffer)))["a"][:, 0].long().tolist()
    assert order(pieces(300)) == tokens


def test_the_producer_is_at_most_one_piece_ahead():
    made = []

    def counted():
        for piece in pieces(1000):
            made.append(piece)
            yield piece

    with ActivationBuffer({"a": 1}, 30) as buffer, buffer.fed_by(counted()):
        buffer.take(10)
        time.sleep(0.05)
        # Three fit and one waits in hand; one lies ready, and one has been made after it.
        assert len(made) <= 6


@pytest.mark.parametrize("after", [0, 3])
def test_a_producer_that_dies_ends_the_consumer_with_its_error(after):
    def dying():
        for i, piece in enumerate(pieces(1000)):
            if i == after:
                raise RuntimeError("the model is gone")
            yield piece

    started = time.monotonic()
    with (
        ActivationBuffer({"a": 1}, 64) as buffer,
        buffer.fed_by(dying()),
        pytest.raises(RuntimeError, match="the model is gone"),
    ):
        for _ in buffer.batches(8):
            pass
    assert time.monotonic() - started < 30


def test_bad_pieces_are_refused_as_by_put():
    for bad, error, words in (
        ({"b": torch.zeros(1, 1)}, InputError, "the hook points"),
        ({"a": torch.full((2, 1), float("nan"))}, NonFiniteError, "NaN or Inf in 2 of 2 rows"),
        (numbered(0, 65), InputError, "at most space=64"),
    ):
        with (
            ActivationBuffer({"a": 1}, 64) as buffer,
            buffer.fed_by(iter([bad])),
            pytest.raises(error, match=words),
        ):
            buffer.take(1)


def test_leaving_early_stops_the_thread():
    before = threading.active_count()
    with ActivationBuffer({"a": 1}, 64) as buffer, buffer.fed_by(pieces(10**9)):
        buffer.take(8)
    assert threading.active_count() == before


def test_a_consumer_that_fails_leaves_no_thread_behind():
    before = threading.active_count()
    with (
        pytest.raises(ZeroDivisionError),
        ActivationBuffer({"a": 1}, 64) as buffer,
        buffer.fed_by(pieces(10**9)),
    ):
        raise ZeroDivisionError
    assert threading.active_count() == before
