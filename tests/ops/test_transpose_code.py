"""transpose_code: a stable sort by feature, the same on every implementation."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import as_csr, isas, running, shapes, topk_code
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.spec import Shape


@isas
@shapes
@pytest.mark.parametrize("layout", ["topk", "csr"])
@pytest.mark.parametrize("threads", [1, 3])
def test_equals_the_reference_exactly(isa, shape, layout, threads):
    values, indices = topk_code(shape, torch.float32)
    offsets = None
    if layout == "csr":
        offsets, indices, _ = as_csr(values, indices)
    with ops.use("reference"):
        expected = ops.transpose_code(indices, shape.F, offsets)
    with running(isa, threads=threads):
        found = ops.transpose_code(indices, shape.F, offsets)
    assert all(torch.equal(a, e) for a, e in zip(found, expected, strict=True))


def test_opcheck_and_bad_input():
    _, indices = topk_code(Shape(37, 130, 515, 9), torch.float32)
    torch.library.opcheck(torch.ops.trustbench.transpose_code.default, (indices, 515, None))
    with pytest.raises(InputError, match=r"indices\.dtype=torch\.int64"):
        ops.transpose_code(indices.long(), 515)
    with pytest.raises(InputError, match="d_sae=0"):
        ops.transpose_code(indices, 0)
