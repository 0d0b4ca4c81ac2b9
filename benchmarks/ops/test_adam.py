"""adam_ on one matrix, rows kept at unit norm, against torch's fused Adam, which does not."""

from benchmarks.ops.inputs import op_test
from trustbench import ops

SUBJECT = "ops"
test_adam = op_test(
    "adam",
    {
        "trustbench": lambda i: ops.adam_(
            i.weights.W_dec, i.grad_W, i.moments.m_W_dec, i.moments.v_W_dec,
            step=1, lr=1e-6, unit_norm=True,
        ),
        "torch: Adam alone": lambda i: i.adam_of_one.step(),
    },
)  # fmt: skip
