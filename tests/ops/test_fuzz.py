"""Random calls of every public op: each gives an answer, or an error that trustbench words itself.

A call is made from its seed alone. Its arguments fit each other at first; then up to three are put
out of order. In processes of their own a crash is found as well:

    python -m tests.ops.test_fuzz FIRST COUNT    (says how many calls were answered and refused)
"""

from __future__ import annotations

import inspect
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from trustbench import ops
from trustbench.errors import TrustbenchError
from trustbench.ops.parameters import Moments, Weights

QUICK, SLOW, WORKERS = 3_000, 100_000, 2
# `trusted` takes no argument, and leaves the caller answerable for codes.
OPS = [n for n in ops.__all__ if inspect.isfunction(getattr(ops, n)) and n != "trusted"]
FLOATS = (torch.float32, torch.bfloat16, torch.float64)
DTYPES = (
    *FLOATS, torch.float16, torch.float8_e4m3fn, torch.complex64, torch.bool, torch.uint8,
    torch.int32, torch.int64,
)  # fmt: skip
# Sizes that are too large are far too large: one between would only take the machine's memory.
ODD = (
    None, True, False, -1, 0, 1, 2, 17, 2**31, 2**63, 2**70, -(2**70), 10**400, 0.5, -1.0, 1e-45,
    1e38, math.nan, math.inf, -math.inf, 1j, "x", "auto", "", b"x", [], [1, 2], {}, (),
    object(), torch.float32, torch.int8, np.float32(1), np.int64(1), np.ones(3),
)  # fmt: skip


def tensor(rng: random.Random, dtype: torch.dtype, *shape: int) -> Tensor:
    """Normal numbers, and sometimes ones that are none."""
    made = torch.randn(shape, dtype=torch.float32)
    if made.numel() and rng.random() < 0.1:
        made.view(-1)[rng.randrange(made.numel())] = rng.choice([math.nan, math.inf, -math.inf, 3e38])
    return made.to(dtype)


def arguments(op: str, rng: random.Random) -> dict[str, Any]:
    """What fits each other, for all parameters of the op, or for some of those with a default."""
    d, F = rng.choice([1, 2, 7, 16, 33]), rng.choice([1, 2, 5, 32, 70])
    N, k = rng.choice([0, 1, 3, 8, 20]), rng.randint(1, F)
    adam = "adam" in op or "norm" in op
    dtype = rng.choice(FLOATS[::2] if adam else FLOATS)
    flat = (N * k,) if (csr := rng.random() < 0.5) else (N, k)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    B, kv, S = rng.randint(0, 2), rng.randint(1, 2), rng.randint(0, 12)
    H, T, D = kv * rng.randint(1, 2), rng.randint(0, S), rng.randint(1, 20)

    def made(*shape: int) -> Tensor:
        return tensor(rng, dtype, *shape)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, dtype=torch.int32)

    def weights() -> Weights:
        return Weights(made(F, d), made(F, d), made(F))

    found: dict[str, Callable[[], Any]] = {
        "x": lambda: made(N, d),
        "W_enc": lambda: made(F, d),
        "b_enc": lambda: made(F),
        "W_dec": lambda: made(F, d),
        "b_dec": lambda: made(d),
        "k": lambda: k,
        "threshold": lambda: made(F).abs(),
        "matmul_dtype": lambda: torch.bfloat16,
        "indices": lambda: integers(0, F, *flat),
        "row_offsets": lambda: torch.arange(N + 1) * k if csr else None,
        "values": lambda: made(*flat),
        "coefs": lambda: made(*flat),
        "grad": lambda: made(N, d),
        "source": lambda: made(N, d),
        "d_sae": lambda: F,
        "weights": weights,
        "code": lambda: ops.transpose_code(integers(0, F, N, k), F),
        "moments": lambda: Moments.zeros_like(weights()),
        "param": lambda: made(N, d),
        "m": lambda: made(N, d),
        "v": lambda: made(N, d).abs(),
        "step": lambda: rng.randint(1, 1000),
        "lr": lambda: 1e-3,
        "beta1": lambda: 0.9,
        "beta2": lambda: rng.choice([0.0, 0.999]),
        "eps": lambda: 1e-8,
        "unit_norm": lambda: True,
        "l1": lambda: 0.1,
        "l1_form": lambda: rng.choice(["sum", "decoder_norm"]),
        "clip_scale": lambda: 0.5,
        "name": lambda: rng.choice(["auto", "cpp", "reference"]),
        "out_dtype": lambda: rng.choice(FLOATS),
        "room": lambda: rng.randint(0, 2 * N * F),
        "rows": lambda: integers(0, N + 1, N * k),
        "push": lambda: made(*flat),
        "scalars": lambda: ops.step_scalars(3, 1e-3, 0.9, 0.999, slope=0.1),
        "copies": lambda: (made(F, d).bfloat16(), made(F, d).bfloat16()),
        "copy": lambda: made(N, d).bfloat16(),
        "fired": lambda: integers(0, 9, F),
        "acts": lambda: made(N, F).relu(),
        "dacts": lambda: made(N, F),
        "slope": lambda: 0.1 if op == "step_scalars" else made(F).to(wide),
        "scale": lambda: 0.5,
        "device": lambda: torch.device("cpu"),
    }
    if op == "attention_capture":
        found |= {
            "q": lambda: made(B, H, T, D),
            "k": lambda: made(B, kv, S, D),
            "v": lambda: made(B, kv, S, D),
            "causal": lambda: False,
            "window": lambda: rng.randint(1, 9),
            "scale": lambda: 0.3,
            "softcap": lambda: 5.0,
            "sinks": lambda: made(H),
            "key_bias": lambda: made(B, H, S),
            "segments": lambda: integers(-1, 3, B, S),
            "targets": lambda: integers(-1, max(S, 1), B, T, 2),
            "top": lambda: rng.randint(0, 16),
            "last_n": lambda: rng.randint(1, 9),
        }
    given = {}
    for name, parameter in inspect.signature(getattr(ops, op)).parameters.items():
        optional = parameter.default is not parameter.empty
        if name == "row_offsets" or not optional or rng.random() < 0.5:
            assert name in found, f"{op}: say here what its {name!r} may be"
            given[name] = found[name]()
    return given


def disordered(value: Any, rng: random.Random) -> Any:
    """Something else in the place of an argument."""
    if isinstance(value, tuple) and hasattr(value, "_fields") and rng.random() < 0.8:
        parts = list(value)
        at = rng.randrange(len(parts))
        if rng.random() < 0.2:
            return tuple(parts[:at] if rng.random() < 0.5 else parts)
        parts[at] = disordered(parts[at], rng)
        return type(value)(*parts)
    if not isinstance(value, Tensor) or rng.random() < 0.2:
        return rng.choice(ODD)
    how = rng.randrange(12)
    if how == 0:
        return value.to(rng.choice(DTYPES))
    if how == 1:
        return value.to("meta")
    if how == 2:
        return value[1:] if value.ndim else value[None]
    if how == 3:
        return value[..., None] if rng.random() < 0.5 else value.flatten()
    if how == 4 and value.ndim:
        return value.repeat_interleave(2, -1)[..., ::2]
    if how == 5:
        return value.transpose(0, -1) if value.ndim else value
    if how == 6 and value.ndim:
        return value[:1].expand(value.shape) if len(value) else value.new_empty(0)
    if how == 7 and value.ndim in (1, 2):
        return value.to_sparse()
    if how == 8 and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    if how == 9:
        return value.new_zeros([rng.choice([0, 1, 2, 40]) for _ in range(rng.randint(0, 4))])
    if how == 10 and value.numel() and not value.is_floating_point():
        odd = value.clone()
        odd.view(-1)[rng.randrange(odd.numel())] = rng.choice([-1, -(2**31), 2**31 - 1, 1, 0, 100])
        return odd
    return value.roll(1) if value.is_floating_point() else value.flip(0)


class Call(NamedTuple):
    """What a seed stands for."""

    op: str
    implementation: str
    given: dict[str, Any]

    @classmethod
    def of(cls, seed: int) -> Call:
        rng = random.Random(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed costs a millisecond
        op = rng.choice(OPS)
        given = arguments(op, rng)
        for name in rng.sample(sorted(given), min(len(given), rng.choice([0, 0, 1, 1, 1, 2, 3]))):
            given[name] = disordered(given[name], rng)
        return cls(op, rng.choice(["auto", "auto", "reference"]), given)

    def __str__(self) -> str:
        def said(value: Any) -> str:
            if isinstance(value, Tensor):
                return f"{value.dtype} {list(value.shape)} {value.layout} on {value.device}"
            if isinstance(value, tuple):
                return f"{type(value).__name__}({', '.join(map(said, value))})"
            return repr(value)[:60]

        return f"{self.op}({', '.join(f'{n}={said(v)}' for n, v in self.given.items())})"

    def make(self) -> str:
        """Make it: "answered", or "refused" with an error of the project's own."""
        try:
            with ops.use(self.implementation):
                if self.op == "use":
                    with ops.use(**self.given):
                        return "answered"
                self._backward(getattr(ops, self.op)(**self.given))
        except TrustbenchError:
            return "refused"
        except NotImplementedError as error:
            assert str(error), "a NotImplementedError without a sentence"
            return "refused"
        return "answered"

    @staticmethod
    def _backward(result: Any) -> None:
        parts = result if isinstance(result, tuple) else (result,)
        parts = [part for part in parts if isinstance(part, Tensor) and part.requires_grad]
        if parts:
            sum(part.double().sum() for part in parts).backward()


def fuzz(first: int, count: int, reached: Path | None = None) -> Counter[str]:
    """Make the calls of these seeds; how many were answered, and how many refused."""
    found: Counter[str] = Counter()
    file = os.open(reached, os.O_WRONLY | os.O_CREAT) if reached else None
    for seed in range(first, first + count):
        if file is not None:
            os.pwrite(file, b"%12d" % seed, 0)
        call = Call.of(seed)
        try:
            found[call.make()] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {call}: {error!r}") from error
    return found


def test_every_call_is_answered_or_refused():
    found = fuzz(0, QUICK)
    assert found["answered"] > QUICK // 5 and found["refused"] > QUICK // 5, found


@pytest.mark.slow
def test_a_hundred_thousand_calls_and_no_crash(tmp_path):
    share = SLOW // WORKERS
    running = []
    for worker in range(WORKERS):
        command = [sys.executable, "-m", __spec__.name, str(worker * share), str(share)]
        reached = tmp_path / str(worker)
        process = subprocess.Popen(
            [*command, str(reached)], cwd=Path(__file__).parents[2], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        running.append((reached, process))
    for reached, process in running:
        said, errors = process.communicate()
        seed = int(reached.read_text())
        assert process.returncode == 0, f"at seed {seed}: {Call.of(seed)}\n{errors[-3000:]}"
        print(said, end="")


if __name__ == "__main__":
    torch.set_num_threads(1)
    begin, calls = int(sys.argv[1]), int(sys.argv[2])
    print(dict(fuzz(begin, calls, Path(sys.argv[3]) if len(sys.argv) > 3 else None)))
