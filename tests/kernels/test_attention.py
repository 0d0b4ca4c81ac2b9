"""attention_capture in small tiles: gaps, rounds, ties over tiles, descriptors; and its registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trustbench.kernels.triton import _attention, attention_capture
from trustbench.kernels.triton.attention_capture import Tile
from trustbench.ops.attention_capture import reference

NAMES = ("out", "lse", "entropy", "distance", "last", "top_p", "top_index", "mass")


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Every width in tiles of 16 x 16, of which a few dozen keys make several."""
    small = dict.fromkeys((64, 128, 256), (Tile(16, 16, warps=4, stages=2),))
    for table in ("LEAN", "RICH", "IEEE"):
        monkeypatch.setattr(attention_capture, table, small)


def inputs(H: int, H_kv: int, T: int, S: int, D: int, dtype: torch.dtype, B: int = 1):
    q, k, v = (torch.randn(B, h, n, D).to(dtype) for h, n in ((H, T), (H_kv, S), (H_kv, S)))
    return q, k, v, torch.randint(-1, S, (B, T, 3), dtype=torch.int32)


def assert_equals_reference(
    q: Tensor, k: Tensor, v: Tensor, targets: Tensor, *, causal=True, window=0, softcap=0.0, top=1,
    last_n=8, sinks=None, segments=None, key_bias=None,
) -> None:  # fmt: skip
    options = (causal, window, q.shape[3] ** -0.5, softcap, top, last_n)
    given = (sinks, segments, key_bias, targets, *options)
    found = attention_capture.attention_capture(q, k, v, *given)
    exact = reference(q.double(), k.double(), v.double(), *given)
    for name, mine, wanted in zip(NAMES, found, exact, strict=True):
        if name == "top_index":
            assert torch.equal(mine, wanted), name
            continue
        seen = wanted[wanted.isfinite()].abs()
        scale = float(seen.max()) if len(seen) else 1.0
        # Triton's interpreter cuts bf16 off where the device rounds.
        eps = 1e-5 if name != "out" or q.dtype == torch.float32 else 2.0**-6
        torch.testing.assert_close(mine.double(), wanted, rtol=eps, atol=eps * scale, msg=name)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("window", [0, 1, 9, 40])
def test_tiles_seen_whole_and_in_part(causal, window):
    """Both gaps of both paths: window edges, the last keys in the middle, ragged ends."""
    for T, S, last_n in (70, 70, 1 if causal else 20), (21, 85, 20 if causal else 1):
        given = inputs(2, 1, T, S, 16, torch.float32)
        assert_equals_reference(*given, causal=causal, window=window, last_n=last_n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("top", [0, 1, 3, 16])
def test_everything_at_once(dtype, top):
    bias = (dtype == torch.bfloat16) != (top in (1, 16))  # with every top, and with every dtype
    given = inputs(4, 2, 50, 67, 24, dtype, B=2)
    segments = torch.tensor([0, 0, 1, -2, 2, 2, -1, 3]).repeat_interleave(9)[:67].int()
    assert_equals_reference(
        *given, top=top, window=33, softcap=1.5, sinks=torch.randn(4),
        segments=torch.stack([segments, segments.flip(0)]),
        key_bias=torch.rand(2, 4, 1) * torch.arange(67) if bias else None,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bias_in_tiles_seen_whole(dtype):
    """Of keys far behind too, whose bias makes their share next to nothing."""
    given = inputs(4, 1, 21, 85, 16, dtype, B=2)
    slopes = torch.tensor([0.0, 0.01, 0.5, 3.0]).expand(2, 4)
    assert_equals_reference(*given, key_bias=slopes[..., None] * torch.arange(85), last_n=3)
    assert_equals_reference(*given, key_bias=-slopes[..., None] * torch.arange(85), top=2)


@pytest.mark.parametrize("D", [1, 80, 256])
def test_widths_that_are_no_power_of_two_and_the_widest(D):
    assert_equals_reference(*inputs(2, 2, 20, 37, D, torch.bfloat16), top=2)


@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
def test_equal_scores_of_several_tiles(causal, top):
    # The window's left edge comes after the tiles in the middle, and before them in the order.
    q, k, v, targets = inputs(1, 1, 90, 90, 16, torch.float32)
    equal = torch.zeros_like(k)
    assert_equals_reference(q, equal, v, targets, causal=causal, window=40, top=top)
    few = torch.randint(-1, 2, k.shape).float()
    assert_equals_reference(few, few, v, targets, causal=causal, window=40, top=top)


def rounds(monkeypatch, scores: Tensor, top: int) -> int:
    """How many rounds the lists take with these scores of keys, the same for every query."""
    counted = []
    column_of = _attention.column_of

    def counting(*args, **kwargs):
        counted.append(None)
        return column_of(*args, **kwargs)

    monkeypatch.setattr(_attention, "column_of", counting)
    S = len(scores)
    q, k = torch.ones(1, 1, S, 1), scores.view(1, 1, S, 1)
    assert_equals_reference(
        q, k, torch.randn(1, 1, S, 1), torch.zeros(1, S, 3).int(), top=top, last_n=1
    )
    return len(counted)


def test_only_tiles_with_a_key_for_a_list_cost_rounds(monkeypatch):
    tiles = 4
    falling = torch.linspace(2, -2, 16 * tiles)
    # Each program's first tile fills the lists; in rising order, every tile renews them.
    assert rounds(monkeypatch, falling, 3) == 3 * tiles
    assert rounds(monkeypatch, falling.flip(0), 3) == 3 * tiles * (tiles + 1) // 2


def test_descriptors_and_pointers_agree(monkeypatch):
    given = inputs(2, 1, 40, 53, 24, torch.bfloat16)
    options = (None, None, None, given[3], True, 20, 0.3, 0.0, 2, 4)
    tile = attention_capture.tile_for(given[0], 2, True)
    assert attention_capture.descriptors(tile, *given[1:3])[2]
    found = attention_capture.attention_capture(*given[:3], *options)
    monkeypatch.setattr(attention_capture, "descriptors", lambda _, k, v: (k, v, False))
    again = attention_capture.attention_capture(*given[:3], *options)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_values_beyond_the_keys_do_not_matter():
    """What lies behind a head's last key is another head's first: nothing of it may be used."""
    q, k, v, targets = inputs(2, 2, 21, 21, 16, torch.bfloat16)
    k[:, 1], v[:, 1] = float("nan"), float("inf")
    options = (None, None, None, targets, True, 0, 0.25, 0.0, 2, 4)
    targets[:] = 0
    found = attention_capture.attention_capture(q, k, v, *options)
    assert all(torch.isfinite(t[:, 0]).all() for t in found)
    for name, mine in zip(NAMES, found, strict=True):
        # What is used is not hidden.
        assert name in ("top_p", "top_index") or mine[:, 1].isnan().all(), name


def test_every_width_has_a_tile(monkeypatch):
    monkeypatch.undo()
    for D, dtype, top in product(
        (1, 16, 33, 64, 80, 128, 129, 256), (torch.float32, torch.half), (0, 4)
    ):
        tile = attention_capture.tile_for(torch.empty(1, 1, 1, D, dtype=dtype), top, True)
        assert max(D, 16) <= tile.BD and tile.shared(4 if dtype == torch.float32 else 2) <= 227 * 1024


CAPPED = """
import json, triton
from benchmarks.guard.triton import measure
from trustbench.kernels.triton import attention_capture

compile, builds, found = triton.compile, attention_capture.BUILDS, []
for place, build in enumerate(builds):
    tiles = [t for t in attention_capture.LEAN[build.constants.get("D", 64)] if t.registers]
    sizes = [(t.BM, t.BN) for t in tiles]
    lean = build.constants.get("TOP", 2) <= 1 and build.signature["bias"] is None
    if 90 in build.targets and lean and (build.constants["BM"], build.constants["BN"]) in sizes:
        cap = {"maxnreg": tiles[0].registers}
        triton.compile = lambda source, target, options: compile(source, target, options | cap)
        found.append(measure(("attention_capture", place), 90) | cap)
print(json.dumps(found))
"""


def test_capped_registers_do_not_spill():
    """The launch caps registers, which the guard of all kernels does not know of."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", CAPPED], cwd=Path(__file__).parents[2], env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    figures = json.loads(run.stdout)
    assert figures
    for figure in figures:
        assert figure["registers"] <= figure["maxnreg"] and figure["mix"]["spills"] == 0, figure
        assert figure["wgmma"] > 0, figure
