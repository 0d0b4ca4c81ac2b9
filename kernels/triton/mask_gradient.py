"""The dense regime's pass between its matmuls: mask the gradient.

    dpre = (dacts + slope_i) where acts > 0, else 0

over acts and dacts [N, F] in bf16, with the sum over tokens that the bias needs.
It reads both once and writes dpre over dacts: three times N F times 2 bytes.
"""

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton._build import Build, Limits

_COLS, _ROWS, _SPAN = 128, 32, 512  # features, tokens at once, tokens of one program


@triton.jit(do_not_specialize=["N"])
def mask_kernel(
    acts, dacts, slope, db, N, F,
    COLS: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """COLS features of SPAN tokens; their sums go to row program_id(1) of db."""
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    inside = cols < F
    push = tl.load(slope + cols, mask=inside, other=0.0)
    d_total = tl.zeros((COLS,), tl.float32)
    first = tl.program_id(1) * SPAN
    for start in range(first, tl.minimum(first + SPAN, N), ROWS):
        rows = start + tl.arange(0, ROWS)
        at = rows[:, None].to(tl.int64) * F + cols[None, :]
        here = (rows < N)[:, None] & inside[None, :]
        a = tl.load(acts + at, mask=here, other=0.0).to(tl.float32)
        d = tl.load(dacts + at, mask=here, other=0.0).to(tl.float32)
        d = tl.where(a > 0, d + push[None, :], 0.0)
        tl.store(dacts + at, d.to(dacts.dtype.element_ty), mask=here)
        d_total += tl.sum(d, axis=0)
    tl.store(db + tl.program_id(1).to(tl.int64) * F + cols, d_total, mask=inside)


def mask_gradient(acts, dacts, slope):
    """db fp32 [F]: the sum of dpre over tokens.

    acts, dacts [N, F] contiguous, of one dtype; dacts becomes dpre. slope fp32 [F].
    """
    N, F = acts.shape
    spans = triton.cdiv(N, _SPAN)
    db = torch.empty(spans, F, dtype=torch.float32, device=acts.device)
    mask_kernel[(triton.cdiv(F, _COLS), spans)](
        acts, dacts, slope, db, N, F,
        COLS=_COLS, ROWS=_ROWS, SPAN=_SPAN, num_warps=8,
    )  # fmt: skip
    return db.sum(0)


BUILDS = (
    Build(
        "bf16",
        mask_kernel,
        {"acts": "*bf16", "dacts": "*bf16", "slope": "*fp32", "db": "*fp32", "N": "i32", "F": "i32"},
        {"COLS": _COLS, "ROWS": _ROWS, "SPAN": _SPAN},
        warps=8,
        limits=Limits(registers=112),
    ),
)
