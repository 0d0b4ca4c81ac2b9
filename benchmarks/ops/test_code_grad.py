"""code_grad against a gather and einsum, and a dense matmul."""

import torch

from benchmarks.ops.inputs import op_test
from trustbench import ops

SUBJECT = "ops"
test_code_grad = op_test(
    "code_grad",
    {
        "trustbench": lambda i: ops.code_grad(i.grad, i.code.indices, i.W),
        "torch: gather, einsum": lambda i: torch.einsum("nd,nkd->nk", i.grad, i.W[i.long]),
        "torch: dense matmul, gather": lambda i: (i.grad @ i.W.T).gather(1, i.long),
    },
)
