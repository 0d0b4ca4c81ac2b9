"""A thread that makes activations while the consumer trains on earlier ones."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from queue import Empty, Queue
from typing import Any

from torch import Tensor

Piece = Mapping[str, Tensor]
_END = object()


class Producer:
    """Runs an iterable in a thread of its own, one piece ahead of whoever asks.

    The pieces come out in the iterable's order, whatever the timing, and at most two exist at a time:
    one in hand and one being made. An exception of the iterable comes out in its place.

    Parameters
    ----------
    pieces : iterable of {hook point: [n, d]}
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces = pieces
        self._ready: Queue[Any] = Queue(maxsize=1)
        self._stopping = threading.Event()
        self._held: Any = None
        self._thread = threading.Thread(target=self._run, name="trustbench-producer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for piece in self._pieces:
                self._ready.put(piece)
                if self._stopping.is_set():
                    return
            self._ready.put(_END)
        except BaseException as error:  # it is the consumer's now, whatever it is
            self._ready.put(error)

    def peek(self) -> Piece | None:
        """The next piece, waited for; None after the last one. Raises what the iterable raised."""
        if self._held is None:
            self._held = self._ready.get()
        if isinstance(self._held, BaseException):
            raise self._held
        return None if self._held is _END else self._held

    def drop(self) -> None:
        """The piece that `peek` showed has been used."""
        self._held = None

    def close(self) -> None:
        """Stop after the piece that is being made."""
        self._stopping.set()
        while self._thread.is_alive():
            try:  # it may be waiting for its piece to be taken
                self._ready.get(timeout=0.05)
            except Empty:
                continue
        self._thread.join()
