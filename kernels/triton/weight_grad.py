"""weight_grad: one program a feature sums the source rows of its tokens."""

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton import _feature
from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._feature import chunk_of, token_rows
from trustbench.kernels.triton._launch import row_options, tuned_row


@triton.jit
def _sums(coefs, rows, positions, source, first, end, cols, d, BD: tl.constexpr, U: tl.constexpr):
    """(Σ coefs source[n] [BD], Σ coefs) over entries first .. end; coefficient 0 reads no row."""
    total = tl.zeros((BD,), tl.float32)
    mass = 0.0
    for start in range(first, end, U):
        at = start + tl.arange(0, U)
        position = tl.load(positions + at, mask=at < end, other=0)
        token = tl.load(rows + at, mask=at < end, other=0).to(tl.int64)
        c = tl.load(coefs + position, mask=at < end, other=0.0).to(tl.float32)
        total += tl.sum(c[:, None] * token_rows(source, token, c != 0, cols, d), axis=0)
        mass += tl.sum(c, axis=0)
    return total, mass


@triton.jit
def chunk_kernel(
    coefs, offsets, rows, positions, source, chunk_ends, sums, masses, d, F,
    LONG: tl.constexpr, BD: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """The sums of one chunk of a long feature."""
    chunk = tl.program_id(0)
    if chunk < tl.load(chunk_ends + F - 1):
        _, first, end = chunk_of(offsets, chunk_ends, F, chunk, LONG)
        cols = tl.arange(0, BD)
        total, mass = _sums(coefs, rows, positions, source, first, end, cols, d, BD, U)
        tl.store(sums + chunk.to(tl.int64) * d + cols, total, mask=cols < d)
        tl.store(masses + chunk, mass)


@triton.jit
def weight_grad_kernel(
    coefs, offsets, rows, positions, source, chunk_ends, sums, masses, dW, db, d,
    LONG: tl.constexpr, BD: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """dW and db of one feature."""
    i = tl.program_id(0)
    cols = tl.arange(0, BD)
    first, end = tl.load(offsets + i), tl.load(offsets + i + 1)
    chunks = tl.where(end - first > LONG, tl.cdiv(end - first, LONG), 0).to(tl.int32)
    end = tl.where(chunks > 0, first, end)  # its chunks have all of it
    total, mass = _sums(coefs, rows, positions, source, first, end, cols, d, BD, U)
    chunk = tl.load(chunk_ends + i) - chunks
    sums_at = sums + chunk.to(tl.int64) * d
    masses_at = masses + chunk
    for _ in range(chunks):
        total += tl.load(sums_at + cols, mask=cols < d, other=0.0)
        mass += tl.load(masses_at)
        sums_at += d
        masses_at += 1
    tl.store(dW + i.to(tl.int64) * d + cols, total.to(dW.dtype.element_ty), mask=cols < d)
    tl.store(db + i, mass.to(db.dtype.element_ty))


def weight_grad(coefs, code, source):
    """(dW [F, d], db [F]), dtype of source; code: (feature_offsets, rows, positions)."""
    offsets, rows, positions = code
    F, d, nnz = len(offsets) - 1, source.shape[1], len(rows)
    BD, U, warps = tuned_row("weight_grad", source.device, d)
    device = source.device
    ends = _feature.chunk_ends(offsets)
    most = _feature.most_chunks(nnz, F)
    sums = torch.empty(most, d, dtype=torch.float32, device=device)
    masses = torch.empty(most, dtype=torch.float32, device=device)
    dW = torch.empty(F, d, dtype=source.dtype, device=device)
    db = torch.empty(F, dtype=source.dtype, device=device)
    shape = {"LONG": _feature.LONG, "BD": BD, "U": U, "num_warps": warps}
    if most:
        chunk_kernel[(most,)](
            coefs, offsets, rows, positions, source, ends, sums, masses, d, F, **shape
        )
    weight_grad_kernel[(F,)](
        coefs, offsets, rows, positions, source, ends, sums, masses, dW, db, d, **shape
    )
    return dW, db


def _builds():
    code = {"coefs": "*fp32", "offsets": "*i64", "rows": "*i32", "positions": "*i32"}
    sums = {"chunk_ends": "*i32", "sums": "*fp32", "masses": "*fp32"}
    shapes = (("bf16", 1024), ("fp32", 1024), ("bf16", 16384))
    tuned = ((*s, row) for s in shapes for row in row_options(s[1]))
    for kind, d, (BD, U, warps) in tuned:
        shape = {"LONG": _feature.LONG, "BD": BD, "U": U}
        inputs = code | {"source": f"*{kind}"} | sums
        limits = Limits(registers=128)
        yield Build(
            f"chunks, {kind}, d = {d}, U = {U}", chunk_kernel,
            inputs | {"d": "i32", "F": "i32"}, shape, warps=warps, limits=limits,
        )  # fmt: skip
        yield Build(
            f"{kind}, d = {d}, U = {U}", weight_grad_kernel,
            inputs | {"dW": f"*{kind}", "db": f"*{kind}", "d": "i32"}, shape,
            warps=warps, limits=limits,
        )  # fmt: skip


BUILDS = tuple(_builds())
