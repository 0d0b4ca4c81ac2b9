"""Spill: what an ActivationBuffer may use below its pool, in bytes."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from trustbench.errors import DataError, bad
from trustbench.fields import Config, NonNegativeInt


@dataclass(frozen=True, kw_only=True)
class Spill(Config):
    """Bounds of the tiers below a buffer's pool: host memory, then files.

    Tokens lie there in segments of about 32 MiB (less where the pool is small). The place of one
    segment stays free.

    Parameters
    ----------
    host_bytes
        Host memory for tokens that the pool has no room for; on a GPU it is page-locked. With a disk
        it also holds the three segments on their way to and from it; 0 then means these alone.
    disk_bytes
        Files for tokens that host memory has no room for. Half of them hold tokens; the other half
        is for what the last saved state still needs, as files are never written twice.
    directory
        Of the files: a fast local disk, for one buffer alone. What an earlier, abandoned buffer left
        there is removed.
    """

    host_bytes: NonNegativeInt = 0
    disk_bytes: NonNegativeInt = 0
    directory: str = ""

    def check(self) -> None:
        """Files without a directory: InputError."""
        if self.disk_bytes and not self.directory:
            raise bad("directory", self.directory, "where the files may lie, as disk_bytes is not 0")

    def __bool__(self) -> bool:
        """Whether there is any tier."""
        return bool(self.host_bytes or self.disk_bytes)

    def prepare(self) -> None:
        """Make the directory; DataError when the disk has not the room, before any work is done."""
        if not self.disk_bytes:
            return
        path = Path(self.directory)
        try:
            path.mkdir(parents=True, exist_ok=True)
            there = sum(f.stat().st_size for f in path.glob("segment-*"))
            free = shutil.disk_usage(path).free + there
        except OSError as error:
            raise DataError(f"spill: {os.fspath(path)!r} cannot be used ({error})") from error
        if free < self.disk_bytes:
            raise DataError(
                f"spill: disk_bytes={self.disk_bytes} is more than the {free} bytes free in {path}"
            )
