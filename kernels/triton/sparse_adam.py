"""sparse_adam: a feature's gradients and its Adam step in one program; gradients stay in registers.

For every entry the program reads the token's error and input once (16 MB each at 8,192 tokens and
d = 1024 in bf16: they stay in L2), then the feature's weights and moments once. What must come from
memory is the optimiser's traffic alone: 24 bytes a weight read and written with fp32 moments, 4 more
for the bf16 copies that the matmul and the gathers read.
"""

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton import _adam, _feature
from trustbench.kernels.triton._adam import may_update, moved, random_bits, scale_of, slope_of, stored
from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._feature import chunk_of, gradient_sums
from trustbench.kernels.triton._launch import row_options, tuned_row

GROUP = 8  # features of one program: as many rows less of b_dec's partial sums


@triton.jit
def chunk_kernel(
    values, offsets, rows, positions, x, grad, W_dec, chunk_ends, sums, totals, figures, d, F,
    DECODER_NORM: tl.constexpr, LONG: tl.constexpr, BD: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """Sums of one chunk of a long feature: sums [chunk, 2, d], totals [chunk, 3]."""
    chunk = tl.program_id(0)
    if chunk < tl.load(chunk_ends + F - 1):
        i, first, end = chunk_of(offsets, chunk_ends, F, chunk, LONG)
        cols = tl.arange(0, BD)
        w = tl.load(W_dec + i.to(tl.int64) * d + cols, mask=cols < d, other=0.0)
        slope = slope_of(figures)
        weight = slope * tl.sqrt(tl.sum(w * w, axis=0)) if DECODER_NORM else slope
        d_dec, d_enc, db, mass, active = gradient_sums(
            values, rows, positions, x, grad, w, weight, first, end, cols, d, BD, U
        )
        at = sums + chunk.to(tl.int64) * (2 * d) + cols
        tl.store(at, d_dec, mask=cols < d)
        tl.store(at + d, d_enc, mask=cols < d)
        tl.store(totals + chunk * 3, db)
        tl.store(totals + chunk * 3 + 1, mass)
        tl.store(totals + chunk * 3 + 2, active.to(tl.float32))


@triton.jit
def sparse_adam_kernel(
    W_enc, W_dec, b_enc, m_enc, v_enc, m_dec, v_dec, m_b, v_b, copy_enc, copy_dec,
    values, offsets, rows, positions, x, grad, chunk_ends, sums, totals,
    through_x, fired, squares, figures, beta1, rest1, beta2, rest2, eps, d, F,
    UPDATE: tl.constexpr, COPIES: tl.constexpr, UNIT_NORM: tl.constexpr, DECODER_NORM: tl.constexpr,
    GROUP: tl.constexpr, LONG: tl.constexpr, BD: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """GROUP features: their gradients, then (UPDATE) Adam on them, else their squared norm."""
    cols = tl.arange(0, BD)
    inside = cols < d
    through = tl.zeros((BD,), tl.float32)
    slope = slope_of(figures)
    for member in range(GROUP):
        i = tl.program_id(0) * GROUP + member
        if i < F:
            here = i.to(tl.int64) * d + cols
            w = tl.load(W_dec + here, mask=inside, other=0.0)
            norm = tl.sqrt(tl.sum(w * w, axis=0)) if DECODER_NORM else 1.0
            first, end = tl.load(offsets + i), tl.load(offsets + i + 1)
            chunks = tl.where(end - first > LONG, tl.cdiv(end - first, LONG), 0).to(tl.int32)
            end = tl.where(chunks > 0, first, end)  # its chunks have all of it
            d_dec, d_enc, db, mass, active = gradient_sums(
                values, rows, positions, x, grad, w, slope * norm, first, end, cols, d, BD, U
            )
            chunk = tl.load(chunk_ends + i) - chunks
            sums_at = sums + chunk.to(tl.int64) * (2 * d)
            totals_at = totals + chunk * 3
            for _ in range(chunks):
                d_dec += tl.load(sums_at + cols, mask=inside, other=0.0)
                d_enc += tl.load(sums_at + d + cols, mask=inside, other=0.0)
                db += tl.load(totals_at)
                mass += tl.load(totals_at + 1)
                active += tl.load(totals_at + 2).to(tl.int32)
                sums_at += 2 * d
                totals_at += 3
            if DECODER_NORM:
                d_dec += slope * mass / tl.maximum(norm, 1.1754944e-38) * w
            if UNIT_NORM:
                d_dec -= tl.sum(d_dec * w, axis=0) * w
            e = tl.load(W_enc + here, mask=inside, other=0.0)
            through -= db * e
            tl.store(fired + i, active)
            if not UPDATE:
                both = tl.sum(d_dec * d_dec + d_enc * d_enc, axis=0)
                tl.store(squares + i, both + db * db)
            elif may_update(figures):
                scale = scale_of(figures)
                bits = random_bits(here, figures)
                kind: tl.constexpr = m_enc.dtype.element_ty
                m = tl.load(m_enc + here, mask=inside, other=0.0).to(tl.float32)
                v = tl.load(v_enc + here, mask=inside, other=0.0).to(tl.float32)
                e, m, v = moved(e, scale * d_enc, m, v, figures, beta1, rest1, beta2, rest2, eps)
                tl.store(W_enc + here, e, mask=inside)
                tl.store(m_enc + here, stored(m, bits, kind), mask=inside)
                tl.store(v_enc + here, stored(v, bits >> 16, kind), mask=inside)
                m = tl.load(m_dec + here, mask=inside, other=0.0).to(tl.float32)
                v = tl.load(v_dec + here, mask=inside, other=0.0).to(tl.float32)
                w, m, v = moved(w, scale * d_dec, m, v, figures, beta1, rest1, beta2, rest2, eps)
                if UNIT_NORM:
                    length = tl.sqrt(tl.sum(w * w, axis=0))
                    w = w / tl.where(length > 0, length, 1.0)
                bits = random_bits(here ^ 0x55555555, figures)
                tl.store(W_dec + here, w, mask=inside)
                tl.store(m_dec + here, stored(m, bits, kind), mask=inside)
                tl.store(v_dec + here, stored(v, bits >> 16, kind), mask=inside)
                if COPIES:
                    tl.store(copy_enc + here, e.to(tl.bfloat16), mask=inside)
                    tl.store(copy_dec + here, w.to(tl.bfloat16), mask=inside)
                b, mb, vb = tl.load(b_enc + i), tl.load(m_b + i), tl.load(v_b + i)
                b, mb, vb = moved(b, scale * db, mb, vb, figures, beta1, rest1, beta2, rest2, eps)
                tl.store(b_enc + i, b)
                tl.store(m_b + i, mb)
                tl.store(v_b + i, vb)
    tl.store(through_x + tl.program_id(0).to(tl.int64) * d + cols, through, mask=inside)


def sparse_adam(
    weights, moments, copies, values, code, x, grad, figures, betas, eps, unit_norm,
    decoder_norm, *, update=True,
):  # fmt: skip
    """(through_x fp32 [d], fired int32 [F], squared norms fp32 [F] or None).

    weights (W_enc, W_dec, b_enc) fp32; moments (m, v of each in turn), fp32, or bf16 for the two
    matrices; copies (W_enc, W_dec) in bf16 or None; values fp32; code (feature_offsets, rows,
    positions); x and grad [N, d], fp32 or bf16; figures: `_adam.scalars` on the device.
    update=False: the norms, and nothing changes. fired: entries > 0 of every feature.
    """
    W_enc, W_dec, b_enc = weights
    offsets, rows, positions = code
    (F, d), device = W_enc.shape, W_enc.device
    BD, U, warps = tuned_row("sparse_adam", device, d)
    ends = _feature.chunk_ends(offsets)
    most = _feature.most_chunks(len(rows), F)
    sums = torch.empty(most, 2, d, dtype=torch.float32, device=device)
    totals = torch.empty(most, 3, dtype=torch.float32, device=device)
    shape = {"LONG": _feature.LONG, "BD": BD, "U": U, "num_warps": warps}
    if most:
        chunk_kernel[(most,)](
            values, offsets, rows, positions, x, grad, W_dec, ends, sums, totals, figures, d, F,
            DECODER_NORM=decoder_norm, **shape,
        )  # fmt: skip
    programs = triton.cdiv(F, GROUP)
    through = torch.empty(programs, d, dtype=torch.float32, device=device)
    fired = torch.empty(F, dtype=torch.int32, device=device)
    squares = None if update else torch.empty(F, dtype=torch.float32, device=device)
    sparse_adam_kernel[(programs,)](
        W_enc, W_dec, b_enc, *moments, *(copies or (None, None)),
        values, offsets, rows, positions, x, grad, ends, sums, totals,
        through, fired, squares, figures,
        betas[0], 1 - betas[0], betas[1], 1 - betas[1], eps, d, F,
        UPDATE=update, COPIES=copies is not None, UNIT_NORM=unit_norm, DECODER_NORM=decoder_norm,
        GROUP=GROUP, **shape,
    )  # fmt: skip
    return through.sum(0), fired, squares


scalars, on_device = _adam.scalars, _adam.on_device


def _builds():
    code = {"values": "*fp32", "offsets": "*i64", "rows": "*i32", "positions": "*i32"}
    floats = dict.fromkeys(("beta1", "rest1", "beta2", "rest2", "eps"), "fp32")
    shapes = (
        ("bf16", "fp32", 1024),
        ("bf16", "bf16", 1024),
        ("fp32", "fp32", 1024),
        ("bf16", "fp32", 4096),
        ("bf16", "fp32", 16384),
    )
    tuned = ((*s, row) for s in shapes for row in row_options(s[2]))
    for kind, moment, d, (BD, U, warps) in tuned:
        # A row of 16384 is 16 numbers a thread of 1024, each of which has 64 registers, and five such
        # rows are held at once: they spill, to L1. Cutting the row in parts would read every
        # token's row again for each part instead.
        spills = {80: 950, 90: 1050, 100: 400} if d > 8192 else {80: 6, 100: 12}
        shape = {"LONG": _feature.LONG, "BD": BD, "U": U}
        sources = {"x": f"*{kind}", "grad": f"*{kind}"}
        sums = {"chunk_ends": "*i32", "sums": "*fp32", "totals": "*fp32"}
        limits = Limits(registers=150 if U < 8 else 230, spills=spills)
        if moment == "fp32":
            yield Build(
                f"chunks, {kind}, d = {d}, U = {U}",
                chunk_kernel,
                code | sources | {"W_dec": "*fp32"} | sums
                | {"figures": "*fp32", "d": "i32", "F": "i32"},
                {"DECODER_NORM": True} | shape,
                warps=warps,
                limits=limits,
            )  # fmt: skip
        weights = dict.fromkeys(("W_enc", "W_dec", "b_enc"), "*fp32")
        moments = dict.fromkeys(("m_enc", "v_enc", "m_dec", "v_dec"), f"*{moment}")
        moments |= dict.fromkeys(("m_b", "v_b"), "*fp32")
        results = {"through_x": "*fp32", "fired": "*i32", "figures": "*fp32"}
        copies = dict.fromkeys(("copy_enc", "copy_dec"), "*bf16" if kind == "bf16" else None)
        for update in (True, False) if moment == "fp32" else (True,):
            yield Build(
                f"{'step' if update else 'norms'}, {kind}, {moment} moments, d = {d}, U = {U}",
                sparse_adam_kernel,
                weights | moments | copies | code | sources | sums | results | floats
                | {"squares": None if update else "*fp32", "d": "i32", "F": "i32"},
                {"UPDATE": update, "COPIES": kind == "bf16", "UNIT_NORM": True, "DECODER_NORM": False}
                | {"GROUP": GROUP} | shape,
                warps=warps,
                limits=limits,
            )  # fmt: skip


BUILDS = tuple(_builds())
