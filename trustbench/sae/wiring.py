"""Wirings: which hook points of a model a dictionary reads, and which it writes."""

from __future__ import annotations

from typing import NamedTuple


class Wiring(NamedTuple):
    """What a dictionary is trained on; trainers, checkpoints and evaluations go by its name.

    An SAE reads and writes one hook point, whose name it has; a transcoder reads one and writes
    another.
    """

    name: str
    reads: str
    writes: str

    @property
    def hook_points(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys((self.reads, self.writes)))


def autoencoder(hook_point: str) -> Wiring:
    """Of an SAE on one hook point."""
    return Wiring(hook_point, hook_point, hook_point)
