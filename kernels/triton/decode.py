"""decode: one program a token gathers its decoder rows, each once."""

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._gather import token_range, weighted_rows
from trustbench.kernels.triton._launch import row_options, tuned_row


@triton.jit(do_not_specialize=["k"])
def decode_kernel(
    values, indices, row_offsets, W, out, k, d,
    CSR: tl.constexpr, BD: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """out[n] = Σ values[p] W[indices[p]] over token n's entries, in fp32, in their order."""
    row = tl.program_id(0)
    start, end = token_range(row, row_offsets, k, CSR)
    cols = tl.arange(0, BD)
    total = weighted_rows(values, indices, W, start, end, cols, d, BD, U)
    tl.store(out + row.to(tl.int64) * d + cols, total.to(out.dtype.element_ty), mask=cols < d)


def decode(values, indices, W, row_offsets):
    """x_hat [N, d], dtype of W, of a TopK code [N, k] or a CSR code; all contiguous."""
    N = len(indices) if row_offsets is None else len(row_offsets) - 1
    d = W.shape[1]
    BD, U, warps = tuned_row("decode", W.device, d)
    out = torch.empty(N, d, dtype=W.dtype, device=W.device)
    if N:
        k = 0 if row_offsets is not None else indices.shape[1]
        decode_kernel[(N,)](
            values, indices, row_offsets, W, out, k, d,
            CSR=row_offsets is not None, BD=BD, U=U, num_warps=warps,
        )  # fmt: skip
    return out


BUILDS = tuple(
    Build(
        f"{kind}, d = {d}, U = {shape.U}, {'CSR' if csr else 'TopK'}",
        decode_kernel,
        {"values": "*fp32", "indices": "*i32", "row_offsets": "*i64" if csr else None}
        | {"W": f"*{kind}", "out": f"*{kind}", "k": "i32", "d": "i32"},
        {"CSR": csr, "BD": shape.BD, "U": shape.U},
        warps=shape.warps,
        limits=Limits(registers=128, shared=1024),
    )
    for kind, d, csr in (("bf16", 1024, False), ("fp32", 1024, True), ("bf16", 16384, False))
    for shape in row_options(d)
)
