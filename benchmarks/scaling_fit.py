"""What a training step costs and holds, as formulas in its sizes.

Time is fitted to what was measured. Memory is counted from the shapes of csrc/ and
trustbench/steps/fused.py: the state exactly, the working memory of a TopK step at its fullest moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

PROCESS = 400_000_000  # bytes of Python, torch and its libraries, before the first trainer
_PACKED = 8 << 20  # a superblock of packed weights; see csrc/kernels/encoder.h
_THREAD = 1 << 19  # a thread's packed tokens and tile of pre-activations
_LANES = 16  # candidates that a row has room for beyond 2 k + 64; see encode_topk_cpu.cpp


class Point(NamedTuple):
    """Sizes of one training step: tokens, d_in, d_sae, active features a token, SAEs."""

    N: int
    d: int
    F: int
    k: int
    layers: int = 1


# Parts of one layer's step: what each is counted in.
TERMS: dict[str, Callable[[Point], float]] = {
    "fixed": lambda p: 1.0,
    "encoder matmul, N·F·d": lambda p: float(p.N * p.F * p.d),
    "sparse passes, N·k·d": lambda p: float(p.N * p.k * p.d),
    "Adam and weights, F·d": lambda p: float(p.F * p.d),
}


class Fit(NamedTuple):
    """Seconds a unit of every term, and how far each measured point is off: fit / measured - 1."""

    coefficients: dict[str, float]
    errors: list[float]

    def parts(self, point: Point) -> dict[str, float]:
        """Seconds of a step, by term."""
        cost = self.coefficients.items()
        return {name: point.layers * each * TERMS[name](point) for name, each in cost}

    def seconds(self, point: Point) -> float:
        """Seconds of a step."""
        return sum(self.parts(point).values())


def point_of(row: Mapping[str, Any]) -> Point:
    """The sizes in a row of measurements."""
    return Point(*(row[name] for name in Point._fields))


def fit(rows: Sequence[Mapping[str, Any]]) -> Fit:
    """Nonnegative least squares of the relative errors, over the rows that were measured.

    With so few terms every subset can be solved: the best of those without a negative coefficient
    is the exact answer.
    """
    measured = [row for row in rows if row["seconds"] is not None]
    points = [point_of(row) for row in measured]
    seconds = np.array([row["seconds"] for row in measured])
    work = np.array([[p.layers * count(p) for count in TERMS.values()] for p in points])
    relative = work / seconds[:, None]
    # Columns of about one size: counts go from 1 to 1e13.
    scale = np.abs(relative).max(axis=0)
    best, least = np.zeros(len(TERMS)), np.inf
    for size in range(1, len(TERMS) + 1):
        for chosen in map(list, combinations(range(len(TERMS)), size)):
            found, *_ = np.linalg.lstsq(relative[:, chosen] / scale[chosen], np.ones(len(points)))
            squares = np.square(relative[:, chosen] / scale[chosen] @ found - 1).sum()
            if (found >= 0).all() and squares < least:
                best, least = np.zeros(len(TERMS)), squares
                best[chosen] = found / scale[chosen]
    return Fit(dict(zip(TERMS, best.tolist(), strict=True)), (relative @ best - 1).tolist())


def state_bytes(p: Point) -> int:
    """Of all trainers: weights, Adam's moments, when each feature last fired. Exact, fp32."""
    matrices = 6 * p.F * p.d * 4
    vectors = p.F * (3 * 4 + 8) + p.d * 3 * 4
    return p.layers * (matrices + vectors + 2 * 4)


def step_bytes(p: Point, threads: int, *, bf16: bool) -> int:
    """At the fullest moment of a step: every layer's batch, and one layer's working memory."""
    tokens, code = 4 * p.N * p.d, 8 * p.N * p.k
    row = (2 if bf16 else 4) * p.d
    packed = min(p.F * row, max(_PACKED, 256 * row)) + threads * _THREAD
    candidates = p.N * (8 * (min(2 * p.k + 64, p.F) + _LANES) + 12)
    moments = (
        tokens + code + packed + candidates,  # encoding: x - b_dec beside x
        3 * tokens + 2 * code + 8 * p.F * (1 + threads),  # Adam: error, gradient, x - b_dec
        tokens + 4 * code,  # noting what fired: indices as int32 and int64, the mask
    )
    return p.layers * tokens + max(moments)


def memory_bytes(p: Point, threads: int, *, bf16: bool) -> int:
    """Of training steps at these sizes, the process itself left out."""
    return state_bytes(p) + step_bytes(p, threads, bf16=bf16)


def memory_end(base: Point, variable: str, free: int, threads: int, *, bf16: bool) -> int | None:
    """The largest value of one size, the others as in `base`, whose steps fit in `free` bytes.

    None where memory does not bound it: k ends at F. 0: not even 1 fits.
    """

    def fits(value: int) -> bool:
        point = base._replace(**{variable: value})
        return PROCESS + memory_bytes(point, threads, bf16=bf16) <= free

    if variable == "k" and fits(base.F):
        return None
    low, high = 0, base.F if variable == "k" else 2**50
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
