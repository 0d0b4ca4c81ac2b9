"""sparse_adam: a feature's gradients and its Adam step in one program; gradients stay in registers.

For every entry the program reads the token's error and input once (16 MB each at 8,192 tokens and
d = 1024 in bf16: they stay in L2), then the feature's weights and moments once. What must come from
memory is the optimiser's traffic alone: 24 bytes a weight read and written with fp32 moments, 4 more
for the bf16 copies that the matmul and the gathers read.
"""

import torch
import triton
import triton.language as tl

from trustbench.kernels.sizes import GROUP
from trustbench.kernels.triton import _feature
from trustbench.kernels.triton._adam import (
    adam_update,
    may_update,
    random_bits,
    scale_of,
    slope_of,
    stored,
)
from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._feature import chunk_of, gradient_sums
from trustbench.kernels.triton._launch import row_options, row_shape, tuned_row


@triton.jit
def chunk_kernel(
    values, push, offsets, rows, positions, x, grad, W_dec, chunk_ends, sums, totals, scalars,
    d, d_out, F, PUSH: tl.constexpr, DECODER_NORM: tl.constexpr, LONG: tl.constexpr,
    BD: tl.constexpr, BE: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """Sums of one chunk of a long feature: sums [chunk, d_out + d], totals [chunk, 3]."""
    chunk = tl.program_id(0)
    if chunk < tl.load(chunk_ends + F - 1):
        i, first, end = chunk_of(offsets, chunk_ends, F, chunk, LONG)
        e = d_out if BE > 0 else d
        cols = tl.arange(0, BD)
        wide = tl.arange(0, BE) if BE > 0 else cols
        w = tl.load(W_dec + i.to(tl.int64) * e + wide, mask=wide < e, other=0.0)
        slope = slope_of(scalars)
        weight = slope * tl.sqrt(tl.sum(w * w, axis=0)) if DECODER_NORM else slope
        d_dec, d_enc, db, mass, active = gradient_sums(
            values, push, rows, positions, x, grad, w, weight, first, end, cols, d, wide, e,
            PUSH, BD, BE if BE > 0 else BD, U,
        )  # fmt: skip
        at = sums + chunk.to(tl.int64) * (e + d)
        tl.store(at + wide, d_dec, mask=wide < e)
        tl.store(at + e + cols, d_enc, mask=cols < d)
        tl.store(totals + chunk * 3, db)
        tl.store(totals + chunk * 3 + 1, mass)
        tl.store(totals + chunk * 3 + 2, active.to(tl.float32))


@triton.jit
def sparse_adam_kernel(
    W_enc, W_dec, b_enc, m_enc, v_enc, m_dec, v_dec, m_b, v_b, copy_enc, copy_dec,
    values, push, offsets, rows, positions, x, grad, chunk_ends, sums, totals,
    through_x, fired, squares, scalars, beta1, rest1, beta2, rest2, eps, d, d_out, F,
    UPDATE: tl.constexpr, COPIES: tl.constexpr, UNIT_NORM: tl.constexpr, DECODER_NORM: tl.constexpr,
    PUSH: tl.constexpr, GROUP: tl.constexpr, LONG: tl.constexpr,
    BD: tl.constexpr, BE: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """GROUP features: their gradients, then (UPDATE) Adam on them, else their squared norm.

    Encoder rows have d numbers, decoder rows d_out; BE = 0: as many, held by the same threads.
    """
    e_width = d_out if BE > 0 else d
    cols = tl.arange(0, BD)
    inside = cols < d
    wide = tl.arange(0, BE) if BE > 0 else cols
    within = wide < e_width
    through = tl.zeros((BD,), tl.float32)
    slope = slope_of(scalars)
    for member in range(GROUP):
        i = tl.program_id(0) * GROUP + member
        if i < F:
            here = i.to(tl.int64) * d + cols
            there = i.to(tl.int64) * e_width + wide
            w = tl.load(W_dec + there, mask=within, other=0.0)
            norm = tl.sqrt(tl.sum(w * w, axis=0)) if DECODER_NORM else 1.0
            first, end = tl.load(offsets + i), tl.load(offsets + i + 1)
            chunks = tl.where(end - first > LONG, tl.cdiv(end - first, LONG), 0).to(tl.int32)
            end = tl.where(chunks > 0, first, end)  # its chunks have all of it
            d_dec, d_enc, db, mass, active = gradient_sums(
                values, push, rows, positions, x, grad, w, slope * norm, first, end, cols, d,
                wide, e_width, PUSH, BD, BE if BE > 0 else BD, U,
            )  # fmt: skip
            chunk = tl.load(chunk_ends + i) - chunks
            sums_at = sums + chunk.to(tl.int64) * (e_width + d)
            totals_at = totals + chunk * 3
            for _ in range(chunks):
                d_dec += tl.load(sums_at + wide, mask=within, other=0.0)
                d_enc += tl.load(sums_at + e_width + cols, mask=inside, other=0.0)
                db += tl.load(totals_at)
                mass += tl.load(totals_at + 1)
                active += tl.load(totals_at + 2).to(tl.int32)
                sums_at += e_width + d
                totals_at += 3
            if DECODER_NORM:
                along = mass / tl.maximum(norm, 1.1754944e-38) if PUSH else slope * mass
                d_dec += along / tl.maximum(norm, 1.1754944e-38) * w
            if UNIT_NORM:
                d_dec -= tl.sum(d_dec * w, axis=0) * w
            e = tl.load(W_enc + here, mask=inside, other=0.0)
            through -= db * e
            tl.store(fired + i, active)
            if not UPDATE:
                if BE > 0:
                    both = tl.sum(d_dec * d_dec, axis=0) + tl.sum(d_enc * d_enc, axis=0)
                else:
                    both = tl.sum(d_dec * d_dec + d_enc * d_enc, axis=0)
                tl.store(squares + i, both + db * db)
            elif may_update(scalars):
                scale = scale_of(scalars)
                bits = random_bits(here, scalars)
                kind: tl.constexpr = m_enc.dtype.element_ty
                m = tl.load(m_enc + here, mask=inside, other=0.0).to(tl.float32)
                v = tl.load(v_enc + here, mask=inside, other=0.0).to(tl.float32)
                e, m, v = adam_update(
                    e, scale * d_enc, m, v, scalars, beta1, rest1, beta2, rest2, eps
                )
                tl.store(W_enc + here, e, mask=inside)
                tl.store(m_enc + here, stored(m, bits, kind), mask=inside)
                tl.store(v_enc + here, stored(v, bits >> 16, kind), mask=inside)
                m = tl.load(m_dec + there, mask=within, other=0.0).to(tl.float32)
                v = tl.load(v_dec + there, mask=within, other=0.0).to(tl.float32)
                w, m, v = adam_update(
                    w, scale * d_dec, m, v, scalars, beta1, rest1, beta2, rest2, eps
                )
                if UNIT_NORM:
                    length = tl.sqrt(tl.sum(w * w, axis=0))
                    w = w / tl.where(length > 0, length, 1.0)
                bits = random_bits(there ^ 0x55555555, scalars)
                tl.store(W_dec + there, w, mask=within)
                tl.store(m_dec + there, stored(m, bits, kind), mask=within)
                tl.store(v_dec + there, stored(v, bits >> 16, kind), mask=within)
                if COPIES:
                    tl.store(copy_enc + here, e.to(tl.bfloat16), mask=inside)
                    tl.store(copy_dec + there, w.to(tl.bfloat16), mask=within)
                b, mb, vb = tl.load(b_enc + i), tl.load(m_b + i), tl.load(v_b + i)
                b, mb, vb = adam_update(
                    b, scale * db, mb, vb, scalars, beta1, rest1, beta2, rest2, eps
                )
                tl.store(b_enc + i, b)
                tl.store(m_b + i, mb)
                tl.store(v_b + i, vb)
    tl.store(through_x + tl.program_id(0).to(tl.int64) * d + cols, through, mask=inside)


def sparse_adam(
    weights, moments, copies, values, push, code, x, grad, scalars, betas, eps, unit_norm,
    decoder_norm, *, update=True,
):  # fmt: skip
    """(through_x fp32 [d], fired int32 [F], squared norms fp32 [F] or None).

    weights (W_enc [F, d], W_dec [F, d_out], b_enc) fp32; moments (m, v of each in turn), fp32, or
    bf16 for the two matrices; copies (W_enc, W_dec) in bf16 or None; values and push (or None) fp32;
    code (feature_offsets, rows, positions); x [R, d] and grad [R, d_out], fp32 or bf16; scalars:
    `step_scalars` on the device. update=False: the norms, and nothing changes. fired: entries > 0 of
    every feature.
    """
    W_enc, W_dec, b_enc = weights
    offsets, rows, positions = code
    (F, d), d_out, device = W_enc.shape, W_dec.shape[1], W_enc.device
    BD, U, warps = tuned_row("sparse_adam", device, max(d, d_out))
    BE = 0
    if d_out != d:
        BD, BE = row_shape(d).BD, row_shape(d_out).BD
    ends = _feature.chunk_ends(offsets)
    most = _feature.most_chunks(len(rows), F)
    sums = torch.empty(most, d_out + d, dtype=torch.float32, device=device)
    totals = torch.empty(most, 3, dtype=torch.float32, device=device)
    shape = {"LONG": _feature.LONG, "BD": BD, "BE": BE, "U": U, "num_warps": warps}
    shape["PUSH"] = push is not None
    if most:
        chunk_kernel[(most,)](
            values, push, offsets, rows, positions, x, grad, W_dec, ends, sums, totals, scalars,
            d, d_out, F, DECODER_NORM=decoder_norm, **shape,
        )  # fmt: skip
    programs = triton.cdiv(F, GROUP)
    through = torch.empty(programs, d, dtype=torch.float32, device=device)
    fired = torch.empty(F, dtype=torch.int32, device=device)
    squares = None if update else torch.empty(F, dtype=torch.float32, device=device)
    sparse_adam_kernel[(programs,)](
        W_enc, W_dec, b_enc, *moments, *(copies or (None, None)),
        values, push, offsets, rows, positions, x, grad, ends, sums, totals,
        through, fired, squares, scalars,
        betas[0], 1 - betas[0], betas[1], 1 - betas[1], eps, d, d_out, F,
        UPDATE=update, COPIES=copies is not None, UNIT_NORM=unit_norm, DECODER_NORM=decoder_norm,
        GROUP=GROUP, **shape,
    )  # fmt: skip
    return through.sum(0), fired, squares


def _builds():
    floats = dict.fromkeys(("beta1", "rest1", "beta2", "rest2", "eps"), "fp32")
    shapes = (  # source, moments, d, d_out, PUSH
        ("bf16", "fp32", 1024, 1024, False),
        ("bf16", "bf16", 1024, 1024, False),
        ("fp32", "fp32", 1024, 1024, False),
        ("bf16", "fp32", 4096, 4096, False),
        ("bf16", "fp32", 16384, 16384, False),
        ("bf16", "fp32", 1024, 1024, True),
        ("fp32", "fp32", 1024, 1024, True),
        ("bf16", "fp32", 1024, 4096, False),
    )
    tuned = ((*s, row) for s in shapes for row in row_options(max(s[2:4])))
    for kind, moment, d, d_out, push, (BD, U, warps) in tuned:
        spills = {80: 6, 100: 12}
        if push or d_out != d:
            spills = {80: 18, 90: 12, 100: 20}  # held beside rows that fill the registers
        elif d > 8192:
            # A row of 16384 is 16 numbers a thread of 1024, each of which has 64 registers, and five
            # such rows are held at once: they spill, to L1. Cutting the row in parts would read every
            # token's row again for each part instead.
            spills = {80: 950, 90: 1050, 100: 400}
        BE = 0
        if d_out != d:
            BD, BE = row_shape(d).BD, row_shape(d_out).BD
        shape = {"PUSH": push, "LONG": _feature.LONG, "BD": BD, "BE": BE, "U": U}
        shown = f"d = {d}{f', d_out = {d_out}' if BE else ''}, U = {U}{', push' if push else ''}"
        sizes = {"d": "i32", "d_out": "i32", "F": "i32"}
        code = {"values": "*fp32", "push": "*fp32" if push else None}
        code |= {"offsets": "*i64", "rows": "*i32", "positions": "*i32"}
        sources = {"x": f"*{kind}", "grad": f"*{kind}"}
        sums = {"chunk_ends": "*i32", "sums": "*fp32", "totals": "*fp32"}
        limits = Limits(registers=(150 if U < 8 else 230) + 10 * push, spills=spills)
        if moment == "fp32":
            yield Build(
                f"chunks, {kind}, {shown}",
                chunk_kernel,
                code | sources | {"W_dec": "*fp32"} | sums
                | {"scalars": "*fp32"} | sizes,
                {"DECODER_NORM": True} | shape,
                warps=warps,
                limits=limits,
            )  # fmt: skip
        weights = dict.fromkeys(("W_enc", "W_dec", "b_enc"), "*fp32")
        moments = dict.fromkeys(("m_enc", "v_enc", "m_dec", "v_dec"), f"*{moment}")
        moments |= dict.fromkeys(("m_b", "v_b"), "*fp32")
        results = {"through_x": "*fp32", "fired": "*i32", "scalars": "*fp32"}
        copies = dict.fromkeys(("copy_enc", "copy_dec"), "*bf16" if kind == "bf16" else None)
        for update in (True, False) if moment == "fp32" else (True,):
            yield Build(
                f"{'step' if update else 'norms'}, {kind}, {moment} moments, {shown}",
                sparse_adam_kernel,
                weights | moments | copies | code | sources | sums | results | floats
                | {"squares": None if update else "*fp32"} | sizes,
                {"UPDATE": update, "COPIES": kind == "bf16", "UNIT_NORM": True, "DECODER_NORM": push}
                | {"GROUP": GROUP} | shape,
                warps=warps,
                limits=limits,
            )  # fmt: skip


BUILDS = tuple(_builds())
