"""Activations on disk: captured once, trained on many times, readable with numpy alone.

    cache/index.json                 what was captured, the shards, and where capturing goes on
    cache/shard_00000.safetensors    one tensor a hook point [n, d], token_ids [n], positions [n]

Tokens stand in the order of the text: those of one context row follow each other, positions
ascending from 0. A shard counts once the index lists it, with its size and checksum; it is written
under a temporary name, flushed and renamed before that, so a kill loses only the shard under way.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trustbench import files
from trustbench.devices import DTYPES
from trustbench.errors import CheckpointError, DataError, NonFiniteError, bad

FORMAT = "trustbench-activations-1"
_FIELDS = {"format", "settings", "hook_points", "shards", "position", "complete"}
_TOKEN_BYTES = 8  # a token's id and position


class Rows(NamedTuple):
    """Activations of n tokens, and which tokens they are."""

    acts: dict[str, Tensor]  # {hook point: [n, d]}
    token_ids: Tensor  # [n] int32
    positions: Tensor  # [n] int32: the place in its context row


class Shard(NamedTuple):
    """One file of the cache, as the index lists it."""

    file: str
    tokens: int
    bytes: int
    crc32: int


class ActivationCache:
    """A cache that `trustbench capture` wrote. Any number of processes may read it at once.

    Parameters
    ----------
    path : path of the directory

    Attributes
    ----------
    widths : {hook point: d}
    aliases : {hook point: its other names, and its layer number if it is where layer numbers point}
    settings : dict
        The CaptureConfig it was captured with.
    shards : list of Shard
    tokens : int

    Raises
    ------
    DataError
        When it is no cache, or a shard is missing or of the wrong size. Contents are checked against
        their checksums when they are first read; `verify` checks them all.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            index = files.read_json(self.path / "index.json")
        except CheckpointError as error:
            raise DataError(f"activations={str(path)!r}: no activation cache ({error})") from error
        if not isinstance(index, dict) or index.get("format") != FORMAT or index.keys() != _FIELDS:
            raise DataError(f"{self.path}/index.json: expected format {FORMAT!r}, whole")
        self.settings: dict[str, Any] = index["settings"]
        self.widths = {name: point["d"] for name, point in index["hook_points"].items()}
        self.aliases = {name: tuple(p["aliases"]) for name, p in index["hook_points"].items()}
        self.dtype = DTYPES[self.settings["dtype"]]
        self.shards = [Shard(**shard) for shard in index["shards"]]
        self.position: dict[str, Any] = index["position"]
        self.complete: bool = index["complete"]
        self.tokens = sum(shard.tokens for shard in self.shards)
        self._checked: set[int] = set()
        for shard in self.shards:
            file = self.path / shard.file
            if not file.is_file():
                raise DataError(f"{file}: missing; the index lists it with {shard.tokens} tokens")
            if file.stat().st_size != shard.bytes:
                raise DataError(
                    f"{file}: truncated or changed ({file.stat().st_size} bytes, the index has"
                    f" {shard.bytes})"
                )

    def __len__(self) -> int:
        return self.tokens

    def select(self, wanted: str | Sequence[int | str]) -> list[str]:
        """The hook points that "all", or layer numbers and names in any spelling, mean."""
        if wanted == "all":
            return list(self.widths)
        named = {
            spelling: name for name, other in self.aliases.items() for spelling in (name, *other)
        }
        entries = [wanted] if isinstance(wanted, str) else wanted
        chosen: list[str] = []
        for entry in entries:
            if str(entry) not in named:
                raise bad("layers", entry, f"'all' or some of the cached {', '.join(self.widths)}")
            if named[str(entry)] not in chosen:
                chosen.append(named[str(entry)])
        return chosen

    def read(
        self, shard: int, first: int = 0, n: int | None = None, names: Sequence[str] | None = None
    ) -> Rows:
        """Tokens first .. first + n of a shard (all from `first` for None), in the stored dtype.

        Raises DataError, naming the file, when the shard is not what was written.
        """
        listed = self.shards[shard]
        self._check(shard)
        last = listed.tokens if n is None else min(first + n, listed.tokens)
        try:
            with safe_open(self.path / listed.file, framework="pt") as file:
                found = {
                    name: file.get_slice(name)[first:last]
                    for name in (*(names or self.widths), "token_ids", "positions")
                }
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self.path / listed.file}: unreadable ({error})") from error
        return Rows(found, found.pop("token_ids"), found.pop("positions"))

    def verify(self) -> None:
        """Check the contents of every shard; DataError names the first that is not as written."""
        for shard in range(len(self.shards)):
            self._check(shard)

    def _check(self, shard: int) -> None:
        """Once for every shard that this object reads."""
        listed = self.shards[shard]
        if shard in self._checked:
            return
        try:
            found = files.checksum(self.path / listed.file)
        except OSError as error:
            raise DataError(f"{self.path / listed.file}: unreadable ({error})") from error
        if found != listed.crc32:
            raise DataError(
                f"{self.path / listed.file}: corrupt (its checksum is not the one in index.json);"
                " restore it, or remove the cache and capture again"
            )
        self._checked.add(shard)


class CacheWriter:
    """Writes a cache shard by shard; made on an unfinished cache, it goes on there.

    Parameters
    ----------
    path : Path
    settings : dict
        The CaptureConfig, JSON-able.
    widths : {hook point: d}
    aliases : {hook point: other names}
    shard_tokens : int
        A shard is written when it holds so many tokens.

    Attributes
    ----------
    position : dict or None
        What the last `flush` was given, in this process or the one before: where to go on.
    tokens : int
        Tokens in written shards, and in the one under way.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        widths: Mapping[str, int],
        aliases: Mapping[str, Sequence[str]],
        shard_tokens: int,
    ) -> None:
        self.path, self.shard_tokens = path, shard_tokens
        self.dtype = DTYPES[settings["dtype"]]
        self._index: dict[str, Any] = {
            "format": FORMAT,
            "settings": dict(settings),
            "hook_points": {
                name: {"d": d, "aliases": list(aliases[name])} for name, d in widths.items()
            },
            "shards": [],
            "position": None,
            "complete": False,
        }
        self._parts: list[Rows] = []
        self._held = 0
        if (path / "index.json").exists():
            found = ActivationCache(path)
            self._index["shards"] = [shard._asdict() for shard in found.shards]
            self._index["position"] = found.position
        for leftover in path.glob(".*.tmp"):  # of a killed process
            leftover.unlink(missing_ok=True)

    @property
    def position(self) -> dict[str, Any] | None:
        return self._index["position"]

    @property
    def tokens(self) -> int:
        return sum(shard["tokens"] for shard in self._index["shards"]) + self._held

    def add(self, rows: Rows, position: Mapping[str, Any]) -> None:
        """Take n tokens; `position` is where the source stands behind them.

        Raises NonFiniteError, taking nothing, for NaN or Inf in what would be stored.
        """
        acts = {name: a.to("cpu", self.dtype) for name, a in rows.acts.items()}
        for name, stored in acts.items():
            finite = torch.isfinite(stored).all(1)
            if not finite.all():
                row = int((~finite).nonzero()[0])
                raise NonFiniteError(
                    f"activations of {name}: NaN or Inf at token {self.tokens + row}"
                )
        self._parts.append(Rows(acts, rows.token_ids.cpu(), rows.positions.cpu()))
        self._held += len(rows.token_ids)
        if self._held >= self.shard_tokens:
            self.flush(position)

    def flush(self, position: Mapping[str, Any], *, complete: bool = False) -> None:
        """Write what is held as a shard, then the index.

        Raises
        ------
        DataError
            When the disk is full, say: the shards before it are whole, and the same command goes on.
        """
        shards = list(self._index["shards"])
        try:
            if self._held:
                file = self.path / f"shard_{len(shards):05d}.safetensors"
                names = self._index["hook_points"]
                tensors = {n: torch.cat([part.acts[n] for part in self._parts]) for n in names}
                tensors["token_ids"] = torch.cat([part.token_ids for part in self._parts]).int()
                tensors["positions"] = torch.cat([part.positions for part in self._parts]).int()
                files.save_tensors(file, tensors)
                written = Shard(file.name, self._held, file.stat().st_size, files.checksum(file))
                shards.append(written._asdict())
            index = self._index | {
                "shards": shards,
                "position": dict(position),
                "complete": complete,
            }
            files.atomic_write_json(self.path / "index.json", index)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{self.path}: not written ({error}); its {len(self._index['shards'])} shards are"
                " whole, and the same command goes on after them"
            ) from error
        self._index, self._parts, self._held = index, [], 0


def token_bytes(widths: Mapping[str, int], dtype: str) -> int:
    """Bytes of one token in a cache."""
    return sum(widths.values()) * DTYPES[dtype].itemsize + _TOKEN_BYTES


def check_disk(path: Path, widths: Mapping[str, int], tokens: int, dtype: str) -> str:
    """A line that says what a cache needs and what the disk has; DataError when that is less."""
    needed = tokens * token_bytes(widths, dtype)
    standing = next(p for p in (path, *path.absolute().parents) if p.exists())
    held = sum(file.stat().st_size for file in path.glob("shard_*.safetensors"))
    free = shutil.disk_usage(standing).free + held
    line = f"needs {needed / 1e9:.2f} GB, {standing} has {free / 1e9:.2f} GB free"
    if needed > free:
        fit = int(free / needed * tokens)
        raise DataError(f"out: {line}; --tokens {fit} would fit, or fewer layers")
    return line
