"""encode_batchtopk against torch's matmul and topk over the whole batch."""

from benchmarks.ops.inputs import op_test
from trustbench import ops

SUBJECT = "ops"
test_encode_batchtopk = op_test(
    "encode_batchtopk",
    {
        "trustbench": lambda i: ops.encode_batchtopk(i.x, i.W, i.b, i.k),
        "torch: matmul, topk": lambda i: (i.x @ i.W.T + i.b).flatten().topk(i.N * i.k, sorted=False),
    },
)
