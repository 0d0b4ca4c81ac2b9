"""reconstruct against embedding_bag and the residual."""

import torch
from torch.nn.functional import embedding_bag

from benchmarks.ops.inputs import Inputs, op_test
from trustbench import ops

SUBJECT = "ops"


def plain(i: Inputs) -> torch.Tensor:
    """The same in torch's own functions."""
    x_hat = embedding_bag(i.long, i.W, per_sample_weights=i.code.values, mode="sum")
    return (x_hat - i.x).square().sum(1)


test_reconstruct = op_test(
    "reconstruct",
    {
        "trustbench": lambda i: ops.reconstruct(i.code.values, i.code.indices, i.W, i.x[0], i.x),
        "torch: embedding_bag, residual": plain,
    },
)
