"""The memory of a process: how much it is, and whether what is freed is kept.

The C library gives large blocks back to the system when they are freed, and the next step pays again
for every page: half of the time of some peers, and up to twice that from one hour to the next, as
the system has pages at hand or not. A GPU's caching allocator does not do that, and a careful user
of a CPU does not let it happen. So whoever is timed keeps what it freed. Memory is measured without:
what is free must not count as used.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# Beside not mapping, not trimming: small remainders at the ends of a freed block must join it again,
# or it is too small for the next tensor of its size.
_TUNABLES = {
    "mmap_max": 0, "trim_threshold": 2**40, "top_pad": 2**26, "tcache_count": 0, "mxfast": 0,
}  # fmt: skip
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # malloc.h
_libc = ctypes.CDLL(None)  # torch's wheels for Linux need glibc


def keeping() -> dict[str, str]:
    """The environment of a process that keeps what it frees (glibc's malloc reads it)."""
    return os.environ | {
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={n}" for name, n in _TUNABLES.items())
    }


def plain() -> dict[str, str]:
    """The environment of a process that does not."""
    return {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}


def trim() -> None:
    """What this process has free goes back to the system, once."""
    _libc.malloc_trim(0)


def give_back() -> None:
    """What this process has free goes back to the system, now and from now on."""
    _libc.mallopt(_M_MMAP_MAX, 65536)
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_TOP_PAD):
        _libc.mallopt(option, 128 * 1024)
    trim()


def memory(key: str) -> int:
    """VmRSS (now) or VmHWM (highest since it was last reset) of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status")
