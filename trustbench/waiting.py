"""How long the waiting threads of a parallel loop spin before they sleep.

torch's ops and the kernels of csrc/ share the OpenMP runtime that torch brings, GNU's libgomp. At
the end of a loop a thread that waits for the others spins, by default for 300,000 rounds: 6 ms and
more. With another busy process on the same cores, the thread that all wait for may have no core while
those that spin keep theirs. After `SPINS` rounds, 0.2 to 0.6 ms, they sleep and give it up; on a
quiet machine few waits of a training step last as long.

libgomp reads its settings once, when torch is imported. So the first import of trustbench chooses,
and comes too late where torch was imported before; the `trustbench` command is always in time. The
user's own settings stay (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html).
"""

from __future__ import annotations

import functools
import os
import sys

SPINS = 10_000
_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@functools.cache
def policy() -> str:
    """The setting that this process and its children run with; the first call chooses it."""
    own = [f"{name}={os.environ[name]}" for name in _SETTINGS if name in os.environ]
    if own:
        return ", ".join(own)
    if "torch" in sys.modules:
        return "OpenMP's default: torch was imported before trustbench"
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    return f"GOMP_SPINCOUNT={SPINS}"
