"""Where activations come from: a model that reads text, or a cache of what one read.

A source is pulled for some tokens at a time, knows its place, and can be put back there.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch

from trustbench import devices
from trustbench.activations.cache import ActivationCache, Rows
from trustbench.activations.config import ActivationsConfig
from trustbench.errors import bad
from trustbench.models import (
    ActivationCapture,
    HookPoint,
    all_hook_points,
    load_model,
    resolve_hook_points,
)
from trustbench.sae.wiring import Wiring, autoencoder


class Source(Protocol):
    """What training and capturing pull activations from."""

    widths: dict[str, int]
    model_bytes: int  # of what it keeps on the device
    wirings: list[Wiring]

    def pull(self) -> Rows:
        """The next tokens; StopIteration when there are no more."""
        ...

    def skip(self) -> int:
        """Pass over what `pull` would give; how many tokens it is."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, ready for JSON; exact."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back (or on) to a place."""
        ...


class ModelSource:
    """The training part of a text, through a model.

    Parameters
    ----------
    settings : ActivationsConfig
        Which model and hook points, which text, and how it is read.
    device, dtype
        Where the model runs, and in what.
    target_site : str
        Of the hook points that transcoders reconstruct, one a layer that is read; "": none.
    repeat : bool
        Read the text again when it ends.

    Attributes
    ----------
    wirings : list of Wiring
        What is read, and what is to be reconstructed from it.
    """

    def __init__(
        self,
        settings: ActivationsConfig,
        device: torch.device,
        dtype: torch.dtype,
        *,
        target_site: str = "",
        repeat: bool = True,
    ) -> None:
        model, tokenizer = load_model(settings.model, dtype=dtype, device=device)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if positions and settings.context_length > positions:
            raise bad("context_length", settings.context_length, f"at most the model's {positions}")
        self.device = device
        reads = resolve_hook_points(model, settings.layers, settings.site)
        self.wirings, self.points = wired(model, reads, target_site)
        self.capture = ActivationCapture(model, self.points)
        probe = self.capture.run(torch.zeros(1, 2, dtype=torch.int64))
        self.widths = {name: acts.shape[-1] for name, acts in probe.items()}
        self.model_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        self._first = int(settings.prepend_bos)  # the column of position 0
        self.stream = settings.stream(tokenizer, "train", repeat=repeat)

    def pull(self) -> Rows:
        """One forward's tokens, without padding and BOS."""
        batch = next(self.stream)
        acts = self.capture.run(batch.input_ids)
        kept = batch.mask.flatten().nonzero().flatten()  # on the host: nothing to wait for
        rows = {name: a.flatten(0, 1) for name, a in acts.items()}
        if len(kept) < batch.mask.numel():
            place = devices.sent(kept, self.device)
            rows = {name: a.index_select(0, place) for name, a in rows.items()}
        columns = torch.arange(batch.mask.shape[1]) - self._first
        positions = columns.expand_as(batch.mask).flatten()[kept]
        return Rows(rows, batch.input_ids.flatten()[kept].int(), positions.int())

    def skip(self) -> int:
        """Pass over one forward's tokens: they are read, but the model is not run."""
        return int(next(self.stream).mask.sum())

    def state_dict(self) -> dict[str, Any]:
        """The stream's place."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place of the stream."""
        self.stream.load_state_dict(state)


def wired(
    model: Any, reads: list[HookPoint], target_site: str
) -> tuple[list[Wiring], list[HookPoint]]:
    """(a wiring for every point that is read, all their points).

    With a target_site each writes the point of that site in its own layer.
    """
    if not target_site:
        return [autoencoder(point.name) for point in reads], reads
    targets = {p.layer: p for p in all_hook_points(model) if p.site == target_site}
    wirings, points = [], {point.name: point for point in reads}
    for point in reads:
        if point.layer not in targets:
            raise bad("target_site", target_site, f"one that layer {point.layer} has")
        target = targets[point.layer]
        wirings.append(Wiring(target.name, point.name, target.name))
        points[target.name] = target
    return wirings, list(points.values())


class CacheSource:
    """A cache, epoch after epoch, its shards in an order that the seed and the epoch decide.

    The order within a shard is the text's: the buffer behind it mixes. The next piece is read while
    the last one is used.

    Parameters
    ----------
    cache : ActivationCache
    names : list of str
        Its hook points that are wanted.
    piece : int
        Tokens a pull, at most.
    device : torch.device
        Where the rows go.
    seed : int
    share : (rank, processes)
        Read every n-th shard of an epoch's order: together, all ranks read all of it once.
    stride : int
        How many pieces on the next pull is, for reading ahead: those between are skipped.
    """

    model_bytes = 0

    def __init__(
        self,
        cache: ActivationCache,
        names: list[str],
        piece: int,
        device: torch.device,
        seed: int,
        share: tuple[int, int] = (0, 1),
        stride: int = 1,
    ) -> None:
        rank, processes = share
        if not 0 <= rank < processes:
            raise bad("share", share, "(rank, processes) with 0 <= rank < processes")
        if len(cache.shards) < processes:
            raise bad(
                "activations",
                str(cache.path),
                f"a cache of at least {processes} shards, one a process",
            )
        self.share, self.stride = share, stride
        self.cache, self.names, self.piece, self.device, self.seed = cache, names, piece, device, seed
        self.widths = {name: cache.widths[name] for name in names}
        self.wirings = [autoencoder(name) for name in names]
        self.epoch = self.shard = self.first = 0  # the shard: a place in the epoch's order
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="trustbench-cache")
        self._ahead: tuple[tuple[int, int, int], Future[Rows]] | None = None

    def pull(self) -> Rows:
        """The next piece of a shard."""
        here = self.epoch, self.shard, self.first
        if self._ahead is not None and self._ahead[0] == here:
            rows = self._ahead[1].result()
        else:
            rows = self._read(here)
        self.epoch, self.shard, self.first = ahead = self._after(here)
        for _ in range(self.stride - 1):
            ahead = self._after(ahead)
        self._ahead = ahead, self._reader.submit(self._read, ahead)
        acts = {name: devices.sent(a, self.device) for name, a in rows.acts.items()}
        return rows._replace(acts=acts)

    def skip(self) -> int:
        """Pass over the next piece, unread."""
        here = self.epoch, self.shard, self.first
        self.epoch, self.shard, self.first = self._after(here)
        return self._length(here)

    def _order(self, epoch: int) -> list[int]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.cache.shards))
        return order[self.share[0] :: self.share[1]].tolist()

    def _read(self, place: tuple[int, int, int]) -> Rows:
        epoch, shard, first = place
        return self.cache.read(self._order(epoch)[shard], first, self.piece, self.names)

    def _length(self, place: tuple[int, int, int]) -> int:
        epoch, shard, first = place
        return min(self.piece, self.cache.shards[self._order(epoch)[shard]].tokens - first)

    def _after(self, place: tuple[int, int, int]) -> tuple[int, int, int]:
        epoch, shard, first = place
        order = self._order(epoch)
        if first + self.piece < self.cache.shards[order[shard]].tokens:
            return epoch, shard, first + self.piece
        return (epoch, shard + 1, 0) if shard + 1 < len(order) else (epoch + 1, 0, 0)

    def state_dict(self) -> dict[str, Any]:
        """The place; the number of shards tells a cache that has grown since."""
        place = {"epoch": self.epoch, "shard": self.shard, "first": self.first}
        return place | {"shards": len(self.cache.shards)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place."""
        if state["shards"] != len(self.cache.shards):
            raise bad(
                "activations",
                f"{self.cache.path} with {len(self.cache.shards)} shards",
                f"the {state['shards']} shards that the run was started with",
            )
        self.epoch, self.shard, self.first = state["epoch"], state["shard"], state["first"]
