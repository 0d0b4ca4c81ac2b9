"""encode_relu, where about one entry in a thousand is active, against matmul and threshold."""

from torch.nn.functional import threshold

from benchmarks.ops.inputs import op_test
from trustbench import ops

SUBJECT = "ops"
_HIGH = 3.0  # of pre-activations of variance 1
test_encode_relu = op_test(
    "encode_relu",
    {
        "trustbench": lambda i: ops.encode_relu(i.x, i.W, i.b, i.b + _HIGH),
        "torch: matmul, threshold": lambda i: threshold(i.x @ i.W.T + i.b, _HIGH, 0.0),
    },
)
