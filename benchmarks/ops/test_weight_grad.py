"""weight_grad against index_add_ of all terms, and a dense matmul."""

import torch

from benchmarks.ops.inputs import Inputs, op_test
from trustbench import ops

SUBJECT = "ops"


def index_add(i: Inputs) -> torch.Tensor:
    """Builds [N k, d]."""
    terms = (i.code.values[:, :, None] * i.x[:, None]).flatten(0, 1)
    return torch.zeros(i.F, i.d).index_add_(0, i.long.flatten(), terms)


test_weight_grad = op_test(
    "weight_grad",
    {
        "trustbench": lambda i: ops.weight_grad(i.code.values, i.code.indices, i.x, i.F),
        "torch: index_add": index_add,
        "torch: dense matmul": lambda i: i.dense.T @ i.x,
    },
)
