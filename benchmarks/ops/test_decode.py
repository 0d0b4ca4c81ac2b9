"""decode against embedding_bag (what sparsify runs on a CPU) and a dense matmul."""

from torch.nn.functional import embedding_bag

from benchmarks.ops.inputs import op_test
from trustbench import ops

SUBJECT = "ops"
test_decode = op_test(
    "decode",
    {
        "trustbench": lambda i: ops.decode(i.code.values, i.code.indices, i.W),
        "torch: embedding_bag": lambda i: embedding_bag(
            i.long, i.W, per_sample_weights=i.code.values, mode="sum"
        ),
        "torch: dense matmul": lambda i: i.dense @ i.W,
    },
)
