"""transpose_code: a code's entries grouped by feature, in a fixed order, without a sort.

Entries are counted and placed with integer atomics, which leaves each feature's entries together but
in the order of arrival. Then every entry finds its rank by counting the entries of its feature that
come earlier in the code: a tile of entries compares with the few that share its features, and a
feature with very many entries is spread over many tiles. The result does not depend on arrival.
"""

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton._build import Build, Limits

_BLOCK = 1024
_TILE, _OTHERS = 128, 32


@triton.jit
def _wanted(p, values, nnz, NONZERO: tl.constexpr):
    """Which places p of a code hold an entry; NONZERO: one whose value is not 0."""
    if NONZERO:
        return (p < nnz) & (tl.load(values + p, mask=p < nnz, other=0.0) != 0)
    return p < nnz


@triton.jit
def count_kernel(indices, values, counts, arrival, nnz, NONZERO: tl.constexpr, BLOCK: tl.constexpr):
    """counts[feature] += 1; arrival[p] = how many of p's feature came before it."""
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = _wanted(p, values, nnz, NONZERO)
    feature = tl.load(indices + p, mask=inside, other=0)
    tl.store(arrival + p, tl.atomic_add(counts + feature, 1, mask=inside), mask=inside)


@triton.jit
def place_kernel(
    indices, values, offsets, arrival, placed, nnz, NONZERO: tl.constexpr, BLOCK: tl.constexpr
):
    """placed: the entries by feature, in the order of arrival."""
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = _wanted(p, values, nnz, NONZERO)
    feature = tl.load(indices + p, mask=inside, other=0)
    at = tl.load(offsets + feature, mask=inside, other=0)
    at += tl.load(arrival + p, mask=inside, other=0)
    tl.store(placed + at, p.to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["k"])
def rank_kernel(
    indices, offsets, placed, token, rows, positions, F, k,
    CSR: tl.constexpr, TILE: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """rows and positions of the entries by (feature, position)."""
    slot = tl.program_id(0) * TILE + tl.arange(0, TILE)
    nnz = tl.load(offsets + F).to(tl.int32)
    inside = slot < nnz
    mine = tl.load(placed + slot, mask=inside, other=0)
    feature = tl.load(indices + mine, mask=inside, other=0)
    start = tl.load(offsets + feature, mask=inside, other=0).to(tl.int32)
    end = tl.load(offsets + feature + 1, mask=inside, other=0).to(tl.int32)
    first = tl.min(tl.where(inside, start, nnz), axis=0)
    rank = tl.zeros((TILE,), tl.int32)
    for at in range(first, tl.max(end, axis=0), OTHERS):
        other = at + tl.arange(0, OTHERS)
        theirs = tl.load(placed + other, mask=other < nnz, other=0)
        # Of my feature: between its start and end.
        same = (other[None, :] >= start[:, None]) & (other[None, :] < end[:, None])
        earlier = same & (theirs[None, :] < mine[:, None])
        rank += tl.sum(earlier.to(tl.int32), axis=1)
    to = start + rank
    row = tl.load(token + mine, mask=inside, other=0) if CSR else mine // k
    tl.store(rows + to, row.to(tl.int32), mask=inside)
    tl.store(positions + to, mine, mask=inside)


def transpose_code(indices, d_sae, token=None, values=None):
    """(feature_offsets int64 [d_sae + 1], rows int32, positions int32 [nnz]).

    indices [N, k], or [nnz] with the `token` of every entry; contiguous, in [0, d_sae). Given
    `values` fp32, entries with value 0 are left out, and the last rows and positions hold nothing.
    """
    nnz, device = indices.numel(), indices.device
    offsets = torch.zeros(d_sae + 1, dtype=torch.int64, device=device)
    rows = torch.empty(nnz, dtype=torch.int32, device=device)
    positions = torch.empty_like(rows)
    if nnz:
        counts = torch.zeros(d_sae, dtype=torch.int32, device=device)
        arrival, placed = torch.empty_like(rows), torch.empty_like(rows)
        grid = (triton.cdiv(nnz, _BLOCK),)
        shape = {"NONZERO": values is not None, "BLOCK": _BLOCK}
        count_kernel[grid](indices, values, counts, arrival, nnz, **shape)
        torch.cumsum(counts, 0, out=offsets[1:])
        place_kernel[grid](indices, values, offsets, arrival, placed, nnz, **shape)
        rank_kernel[(triton.cdiv(nnz, _TILE),)](
            indices, offsets, placed, token, rows, positions, d_sae,
            1 if token is not None else indices.shape[1],
            CSR=token is not None, TILE=_TILE, OTHERS=_OTHERS,
        )  # fmt: skip
    return offsets, rows, positions


_COUNTED = {"counts": "*i32", "arrival": "*i32", "nnz": "i32"}
_PLACED = {"offsets": "*i64", "arrival": "*i32", "placed": "*i32", "nnz": "i32"}

BUILDS = (
    *(
        Build(
            f"{name}{', value not 0' if values else ''}",
            kernel,
            {"indices": "*i32", "values": values} | rest,
            {"NONZERO": values is not None, "BLOCK": _BLOCK},
            warps=4,
            limits=Limits(registers=64),
        )
        for values in (None, "*fp32")
        for name, kernel, rest in (
            ("count", count_kernel, _COUNTED),
            ("place", place_kernel, _PLACED),
        )
    ),
    *(
        Build(
            f"rank, {'CSR' if csr else 'TopK'}",
            rank_kernel,
            {"indices": "*i32", "offsets": "*i64", "placed": "*i32", "token": "*i64" if csr else None}
            | {"rows": "*i32", "positions": "*i32", "F": "i32", "k": "i32"},
            {"CSR": csr, "TILE": _TILE, "OTHERS": _OTHERS},
            warps=4,
            limits=Limits(registers=128, shared=4096),
        )
        for csr in (False, True)
    ),
)
