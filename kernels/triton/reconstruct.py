"""reconstruct: decode, residual, loss and the code's gradient in one program a token."""

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._gather import products, token_range, weighted_rows
from trustbench.kernels.triton._launch import row_options, tuned_row


@triton.jit(do_not_specialize=["k"])
def reconstruct_kernel(
    values, indices, row_offsets, W, b_dec, x, error, squared, dvalues, k, d,
    CSR: tl.constexpr, GRADIENT: tl.constexpr, BD: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """error[n] = x_hat[n] - x[n], squared[n] = ‖error[n]‖²; GRADIENT: dvalues[p] = <error, W row>.

    The second reading of the rows finds them in L1 and L2: 64 rows of d = 1024 in bf16 are 128 KB.
    """
    row = tl.program_id(0)
    start, end = token_range(row, row_offsets, k, CSR)
    cols = tl.arange(0, BD)
    inside = cols < d
    here = row.to(tl.int64) * d + cols
    e = weighted_rows(values, indices, W, start, end, cols, d, BD, U)
    e += tl.load(b_dec + cols, mask=inside, other=0.0).to(tl.float32)
    e -= tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    tl.store(error + here, e.to(error.dtype.element_ty), mask=inside)
    tl.store(squared + row, tl.sum(e * e, axis=0))
    if GRADIENT:
        products(dvalues, e, indices, W, start, end, cols, d, U)


def reconstruct(values, indices, W, b_dec, x, row_offsets, *, gradient, error_dtype):
    """(error [N, d], squared fp32 [N], dvalues fp32 of the code's shape, or empty); contiguous."""
    N, d = x.shape
    BD, U, warps = tuned_row("reconstruct", x.device, d)
    error = torch.empty(N, d, dtype=error_dtype, device=x.device)
    squared = torch.empty(N, dtype=torch.float32, device=x.device)
    dvalues = torch.empty(indices.shape if gradient else (0,), dtype=torch.float32, device=x.device)
    if N:
        k = 0 if row_offsets is not None else indices.shape[1]
        reconstruct_kernel[(N,)](
            values, indices, row_offsets, W, b_dec, x, error, squared, dvalues, k, d,
            CSR=row_offsets is not None, GRADIENT=gradient, BD=BD, U=U, num_warps=warps,
        )  # fmt: skip
    return error, squared, dvalues


BUILDS = tuple(
    Build(
        f"{kind}, d = {d}, U = {shape.U}, {'CSR' if csr else 'TopK'}"
        f"{', dvalues' if gradient else ''}",
        reconstruct_kernel,
        {"values": "*fp32", "indices": "*i32", "row_offsets": "*i64" if csr else None}
        | {"W": f"*{kind}", "b_dec": "*fp32", "x": f"*{kind}", "error": f"*{kind}"}
        | {"squared": "*fp32", "dvalues": "*fp32", "k": "i32", "d": "i32"},
        {"CSR": csr, "GRADIENT": gradient, "BD": shape.BD, "U": shape.U},
        warps=shape.warps,
        limits=Limits(registers=128, shared=2048),
    )
    for kind, d, csr, gradient in (
        ("bf16", 1024, False, False),
        ("bf16", 1024, False, True),
        ("fp32", 1024, True, True),
        ("bf16", 16384, False, False),
    )
    for shape in row_options(d)
)
