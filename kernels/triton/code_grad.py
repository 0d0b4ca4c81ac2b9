"""code_grad: one program a token multiplies its gradient with the decoder rows of its entries."""

import torch
import triton
import triton.language as tl

from trustbench.kernels.triton._build import Build, Limits
from trustbench.kernels.triton._gather import products, token_range
from trustbench.kernels.triton._launch import row_options, tuned_row


@triton.jit(do_not_specialize=["k"])
def code_grad_kernel(
    grad, indices, row_offsets, W, out, k, d,
    CSR: tl.constexpr, BD: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """out[p] = <grad[n], W[indices[p]]> for the entries p of token n."""
    row = tl.program_id(0)
    start, end = token_range(row, row_offsets, k, CSR)
    cols = tl.arange(0, BD)
    g = tl.load(grad + row.to(tl.int64) * d + cols, mask=cols < d, other=0.0).to(tl.float32)
    products(out, g, indices, W, start, end, cols, d, U)


def code_grad(grad, indices, W, row_offsets):
    """dvalues, fp32, of the shape of indices; all contiguous."""
    N, d = grad.shape
    BD, U, warps = tuned_row("code_grad", W.device, d)
    out = torch.empty(indices.shape, dtype=torch.float32, device=W.device)
    if N:
        k = 0 if row_offsets is not None else indices.shape[1]
        code_grad_kernel[(N,)](
            grad, indices, row_offsets, W, out, k, d,
            CSR=row_offsets is not None, BD=BD, U=U, num_warps=warps,
        )  # fmt: skip
    return out


BUILDS = tuple(
    Build(
        f"{kind}, d = {d}, U = {shape.U}, {'CSR' if csr else 'TopK'}",
        code_grad_kernel,
        {"grad": f"*{kind}", "indices": "*i32", "row_offsets": "*i64" if csr else None}
        | {"W": f"*{kind}", "out": "*fp32", "k": "i32", "d": "i32"},
        {"CSR": csr, "BD": shape.BD, "U": shape.U},
        warps=shape.warps,
        limits=Limits(registers=128, shared=2048),
    )
    for kind, d, csr in (("bf16", 1024, False), ("fp32", 1024, True), ("bf16", 16384, False))
    for shape in row_options(d)
)
