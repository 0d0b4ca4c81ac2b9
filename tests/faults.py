"""Bad disks."""

from __future__ import annotations

import contextlib
import resource


def flip_a_bit(path):
    """In the last tensor: still a valid safetensors file."""
    data = bytearray(path.read_bytes())
    data[-10] ^= 64
    path.write_bytes(data)


@contextlib.contextmanager
def files_end_at(size):
    """A disk with that much room for any one file: writes past it fail in the system itself."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
