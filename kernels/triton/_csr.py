"""From collected entries, in the order of arrival, to a CSR code in the order of tokens and features.

Every entry sets its bit in a map of [N, F / 32] words; a running count of a token's bits before every
word then gives each entry its place: nothing is sorted, and the result does not depend on arrival.
The map is 1/32 of dense fp32 pre-activations, and all else is the size of the code.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._collect import Entries
from trustbench.kernels.triton._order import ordered

_BLOCK = 1024
_WORDS = 1024  # words of the map that a token's program counts at once


class Padded(NamedTuple):
    """A CSR code in memory of a size that was fixed beforehand; behind its entries lie zeros."""

    values: torch.Tensor  # [size] fp32
    indices: torch.Tensor  # [size] int32
    row_offsets: torch.Tensor  # [N + 1] int64
    tokens: torch.Tensor  # [size] int32: the token of every entry


@triton.jit
def _ones(word):
    """How many bits of a uint32 are set."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _listed(values, total, lowest, i, capacity, FILTER: tl.constexpr):
    """Which places i of the list hold an entry; FILTER: one whose ordered value is >= lowest."""
    inside = i < tl.minimum(tl.load(total), capacity)
    if FILTER:
        inside = inside & (ordered(tl.load(values + i, mask=inside, other=0.0)) >= tl.load(lowest))
    return inside


@triton.jit(do_not_specialize=["capacity"])
def mark_kernel(
    tokens, features, values, total, lowest, bits, capacity, words,
    FILTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Set the bit of every entry."""
    if tl.program_id(0) * BLOCK < tl.load(total):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        on = _listed(values, total, lowest, i, capacity, FILTER)
        token = tl.load(tokens + i, mask=on, other=0).to(tl.int64)
        feature = tl.load(features + i, mask=on, other=0)
        bit = tl.full((BLOCK,), 1, tl.int32) << (feature & 31)
        tl.atomic_or(bits + token * words + (feature >> 5), bit, mask=on, sem="relaxed")


@triton.jit
def count_kernel(bits, before, counts, words, BLOCK: tl.constexpr):
    """One program a token: its entries before every word, and in all."""
    row = tl.program_id(0).to(tl.int64)
    found = tl.zeros((), tl.int32)
    for start in range(0, words, BLOCK):
        at = start + tl.arange(0, BLOCK)
        word = tl.load(bits + row * words + at, mask=at < words, other=0)
        ones = _ones(word.to(tl.uint32, bitcast=True))
        tl.store(before + row * words + at, found + tl.cumsum(ones, axis=0) - ones, mask=at < words)
        found += tl.sum(ones, axis=0)
    tl.store(counts + row, found)


@triton.jit(do_not_specialize=["capacity", "size"])
def place_kernel(
    tokens, features, values, total, lowest, bits, before, offsets, out_values, out_indices,
    out_tokens, capacity, size, words, FILTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move every entry to its place."""
    if tl.program_id(0) * BLOCK < tl.load(total):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        on = _listed(values, total, lowest, i, capacity, FILTER)
        token = tl.load(tokens + i, mask=on, other=0)
        feature = tl.load(features + i, mask=on, other=0)
        word_at = token.to(tl.int64) * words + (feature >> 5)
        word = tl.load(bits + word_at, mask=on, other=0).to(tl.uint32, bitcast=True)
        lower = (tl.full((BLOCK,), 1, tl.uint32) << (feature & 31).to(tl.uint32)) - 1
        to = tl.load(offsets + token, mask=on, other=0)
        to += tl.load(before + word_at, mask=on, other=0) + _ones(word & lower)
        on = on & (to < size)
        tl.store(out_values + to, tl.load(values + i, mask=on, other=0.0), mask=on)
        tl.store(out_indices + to, feature, mask=on)
        tl.store(out_tokens + to, token, mask=on)


def code(entries: Entries, N: int, F: int, size: int, lowest: torch.Tensor | None = None) -> Padded:
    """The code of the listed entries, or of those whose `ordered` value is >= lowest [1] int32.

    Entries for which the list or `size` has no room are missing. Asks the device for nothing.
    """
    tokens, features, values, total = entries
    device, capacity, words = values.device, len(values), triton.cdiv(F, 32)
    bits = torch.zeros(N, words, dtype=torch.int32, device=device)
    before = torch.empty_like(bits)
    counts = torch.empty(N, dtype=torch.int32, device=device)
    offsets = torch.zeros(N + 1, dtype=torch.int64, device=device)
    out_values = torch.zeros(size, dtype=torch.float32, device=device)
    out_indices, out_tokens = (torch.zeros(size, dtype=torch.int32, device=device) for _ in range(2))
    if N and size:
        listed = (tokens, features, values, total, lowest)
        grid, shape = (
            (triton.cdiv(capacity, _BLOCK),),
            {"FILTER": lowest is not None, "BLOCK": _BLOCK},
        )
        mark_kernel[grid](*listed, bits, capacity, words, **shape)
        block = min(triton.next_power_of_2(max(words, 2)), _WORDS)
        count_kernel[(N,)](bits, before, counts, words, BLOCK=block)
        torch.cumsum(counts, 0, out=offsets[1:])
        offsets.clamp_(max=size)  # nothing that follows them leaves the code
        place_kernel[grid](
            *listed, bits, before, offsets, out_values, out_indices, out_tokens,
            capacity, size, words,
            **shape,
        )  # fmt: skip
    return Padded(out_values, out_indices, offsets, out_tokens)


def _kinds(*names: str) -> dict[str, str]:
    kinds = {"values": "*fp32", "out_values": "*fp32", "total": "*i64", "offsets": "*i64"}
    kinds |= dict.fromkeys(("capacity", "size", "words"), "i32")
    return {name: kinds.get(name, "*i32") for name in names}


_ENTRIES = ("tokens", "features", "values", "total")

BUILDS = (
    *(
        Build(
            f"{kernel.fn.__name__}{', above a bound' if lowest else ''}",
            kernel,
            _kinds(*_ENTRIES) | {"lowest": lowest} | rest,
            {"FILTER": lowest is not None, "BLOCK": _BLOCK},
            warps=4,
            limits=Limits(registers=96),
        )
        for lowest in (None, "*i32")
        for kernel, rest in (
            (mark_kernel, _kinds("bits", "capacity", "words")),
            (
                place_kernel,
                _kinds("bits", "before", "offsets", "out_values", "out_indices", "out_tokens")
                | _kinds("capacity", "size", "words"),
            ),
        )
    ),
    Build(
        "bits before every word",
        count_kernel,
        _kinds("bits", "before", "counts", "words"),
        {"BLOCK": _WORDS},
        warps=4,
        limits=Limits(registers=64),
    ),
)
