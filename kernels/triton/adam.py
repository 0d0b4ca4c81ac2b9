"""adam: one step of Adam, a row a program (or 1024 numbers, where rows do not matter)."""

import triton
import triton.language as tl

from trustbench.kernels.triton._adam import adam_update, may_update, random_bits, scale_of, stored
from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._launch import row_shape

_PIECE = 1024


@triton.jit
def adam_kernel(
    param, grad, m_at, v_at, copy, scalars, d, total, beta1, rest1, beta2, rest2, eps,
    UNIT_NORM: tl.constexpr, COPY: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """param, m and v of one row, in place, and the param's bf16 copy; UNIT_NORM: on the sphere."""
    if may_update(scalars):
        cols = tl.arange(0, BD)
        start = tl.program_id(0).to(tl.int64) * d
        here = start + cols
        inside = cols < tl.minimum(total - start, d)
        p = tl.load(param + here, mask=inside, other=0.0)
        g = tl.load(grad + here, mask=inside, other=0.0) * scale_of(scalars)
        if UNIT_NORM:
            g -= tl.sum(g * p, axis=0) * p
        m = tl.load(m_at + here, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(v_at + here, mask=inside, other=0.0).to(tl.float32)
        p, m, v = adam_update(p, g, m, v, scalars, beta1, rest1, beta2, rest2, eps)
        if UNIT_NORM:
            norm = tl.sqrt(tl.sum(p * p, axis=0))
            p = p / tl.where(norm > 0, norm, 1.0)
        bits = random_bits(here, scalars)
        tl.store(param + here, p, mask=inside)
        if COPY:
            tl.store(copy + here, p.to(tl.bfloat16), mask=inside)
        tl.store(m_at + here, stored(m, bits, m_at.dtype.element_ty), mask=inside)
        tl.store(v_at + here, stored(v, bits >> 16, v_at.dtype.element_ty), mask=inside)


def adam(param, grad, m, v, scalars, beta1, beta2, eps, unit_norm, copy=None):
    """param, grad fp32 [rows, d]; m, v fp32 or bf16; scalars: `step_scalars` on the device.

    copy: bf16 [rows, d], set to the new param.
    """
    total = param.numel()
    d = param.shape[1] if unit_norm else _PIECE
    BD, _, warps = row_shape(d)
    if total:
        adam_kernel[(triton.cdiv(total, d),)](
            param, grad, m, v, copy, scalars, d, total, beta1, 1 - beta1, beta2, 1 - beta2, eps,
            UNIT_NORM=unit_norm, COPY=copy is not None, BD=BD, num_warps=warps,
        )  # fmt: skip


BUILDS = tuple(
    Build(
        f"d = {d}, {kind} moments{', unit norm' if unit_norm else ''}",
        adam_kernel,
        {"param": "*fp32", "grad": "*fp32", "m_at": f"*{kind}", "v_at": f"*{kind}"}
        | {"copy": "*bf16" if unit_norm else None, "scalars": "*fp32", "d": "i32"}
        | {"total": "i64"}
        | dict.fromkeys(("beta1", "rest1", "beta2", "rest2", "eps"), "fp32"),
        {"UNIT_NORM": unit_norm, "COPY": unit_norm, "BD": row_shape(d).BD},
        warps=row_shape(d).warps,
        # 1024 threads have 64 registers each: a few spill, beside 28 bytes of traffic a number.
        limits=Limits(registers=128, spills=dict.fromkeys((80, 90, 100), 120) if d > 8192 else {}),
    )
    for d, kind, unit_norm in ((1024, "fp32", True), (1024, "bf16", False), (16384, "fp32", True))
)
