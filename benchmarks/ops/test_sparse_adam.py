"""sparse_adam_ (gradients of both matrices, Adam, unit norm) against torch's fused Adam alone."""

from benchmarks.ops.inputs import op_test
from trustbench import ops

SUBJECT = "ops"
test_sparse_adam = op_test(
    "sparse_adam",
    {
        "trustbench": lambda i: ops.sparse_adam_(
            i.weights, i.code.values, i.by_feature, i.x, i.grad, i.moments, step=1, lr=1e-6
        ),
        "torch: Adam alone, gradients given": lambda i: i.adam_of_two.step(),
    },
)
