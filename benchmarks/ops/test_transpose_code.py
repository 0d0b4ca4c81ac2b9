"""transpose_code against a stable sort."""

from benchmarks.ops.inputs import op_test
from trustbench import ops

SUBJECT = "ops"
test_transpose_code = op_test(
    "transpose_code",
    {
        "trustbench": lambda i: ops.transpose_code(i.code.indices, i.F),
        "torch: stable sort": lambda i: i.code.indices.flatten().sort(stable=True),
    },
)
