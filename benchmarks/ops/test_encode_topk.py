"""encode_topk against torch's matmul with and without its topk."""

from benchmarks.ops.inputs import op_test
from trustbench import ops

SUBJECT = "ops"
test_encode_topk = op_test(
    "encode_topk",
    {
        "trustbench": lambda i: ops.encode_topk(i.x, i.W, i.b, i.k),
        "torch: matmul, topk": lambda i: (i.x @ i.W.T + i.b).topk(i.k, sorted=False),
        "torch: matmul alone": lambda i: i.x @ i.W.T,
    },
)
