"""transpose_code: a stable sort by feature, the same on every implementation."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import (
    as_csr,
    implementations,
    isas,
    malformed_codes,
    running,
    shapes,
    strided,
    topk_code,
)
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
    torch.library.opcheck(
        torch.ops.trustbench.transpose_code.default, (indices, 515, None, None, None)
    )
    with pytest.raises(InputError, match="d_sae=0"):
        ops.transpose_code(indices, 0)


@implementations
def test_entries_are_grouped_with_tokens_ascending(isa):
    shape = Shape(100, 64, 60, 12)
    _, indices = topk_code(shape, torch.float32)
    with running(isa, threads=3):
        code = ops.transpose_code(indices, shape.F)
    flat = indices.flatten().tolist()
    expected = sorted(range(len(flat)), key=lambda p: (flat[p], p))
    assert code.positions.tolist() == expected
    assert code.rows.tolist() == [p // shape.k for p in expected]
    sizes = [flat.count(i) for i in range(shape.F)]
    assert code.feature_offsets.diff().tolist() == sizes and code.feature_offsets[0] == 0


@isas
def test_strided_offsets(isa):
    values, indices = topk_code(Shape(37, 130, 515, 9), torch.float32)
    offsets, indices, _ = as_csr(values, indices)
    with running(isa):
        found = ops.transpose_code(indices, 515, strided(offsets))
        expected = ops.transpose_code(indices, 515, offsets)
    assert all(torch.equal(a, e) for a, e in zip(found, expected, strict=True))


@implementations
def test_a_malformed_code_is_refused(isa):
    shape = Shape(37, 130, 515, 9)
    for indices, offsets, message in malformed_codes(shape):
        with running(isa), pytest.raises(InputError, match=message):
            ops.transpose_code(indices, shape.F, offsets)


@isas
def test_rows_of_entries_and_entries_left_out(isa):
    """As a padded code has them: entries of value 0 count for nothing, wherever they lie."""
    shape = Shape(20, 8, 30, 6)
    values, indices = topk_code(shape, torch.float32)
    flat, kept = indices.flatten(), values.flatten() != 0
    rows = torch.randint(50, flat.shape)
    with running(isa, threads=2):
        found = ops.transpose_code(flat, shape.F, rows=rows, values=values.flatten())
        whole = ops.transpose_code(flat, shape.F, rows=rows.int())
        by_token = ops.transpose_code(indices, shape.F, values=values)
    order = sorted(kept.nonzero().flatten().tolist(), key=lambda p: (int(flat[p]), p))
    nnz = len(order)
    assert 0 < nnz < len(flat) == len(found.rows) and found.feature_offsets[-1] == nnz
    assert found.positions[:nnz].tolist() == order
    assert found.rows[:nnz].tolist() == rows[order].tolist()
    assert by_token.rows[:nnz].tolist() == [p // shape.k for p in order]
    assert torch.equal(whole.rows.long(), rows[whole.positions.long()])
    with pytest.raises(InputError, match="expected None where rows are given"):
        ops.transpose_code(flat, shape.F, torch.tensor([0, 120]), rows=rows)
