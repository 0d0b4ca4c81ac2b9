"""encode_relu: every pre-activation above its threshold, as CSR."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import (
    assert_accurate,
    cells,
    dense,
    encoder_inputs,
    exact_pre,
    implementations,
    isas,
    plain_pre,
    running,
)
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.codes import entry_rows
from trustbench.ops.spec import Shape

ODD = Shape(37, 130, 515, 9)


@cells
@pytest.mark.parametrize("with_threshold", [False, True])
def test_keeps_exactly_what_is_above(isa, shape, dtype, with_threshold):
    x, W, b = encoder_inputs(shape, dtype)
    threshold = torch.rand(shape.F) if with_threshold else None
    with running(isa):
        code = ops.encode_relu(x, W, b, threshold)
    plain, exact = plain_pre(x, W, b), exact_pre(x, W, b)
    floor = torch.zeros(shape.F) if threshold is None else threshold
    kept = torch.zeros(shape.N, shape.F, dtype=torch.bool)
    rows = entry_rows(code.indices, code.row_offsets)
    kept[rows, code.indices.long()] = True
    # Membership may differ only within the rounding of the pre-activation.
    near = (exact - floor).abs() < 1e-5 * (1 + shape.d**0.5)
    assert (near | (kept == (exact > floor))).all()
    assert code.row_offsets[0] == 0 and code.row_offsets[-1] == len(code.indices)
    assert ((code.indices[1:] > code.indices[:-1]) | (rows[1:] > rows[:-1])).all()
    at = (rows, code.indices.long())
    assert_accurate(code.values, plain[at].to(dtype), exact[at])


@isas
def test_same_bits_on_any_number_of_threads(isa):
    x, W, b = encoder_inputs(Shape(301, 65, 2000, 32), torch.float32)
    with running(isa, threads=1):
        one = ops.encode_relu(x, W, b)
    with running(isa, threads=3):
        many = ops.encode_relu(x, W, b)
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


@implementations
@pytest.mark.parametrize("floor", [None, 0.0, 1.0, -1.0])
def test_what_equals_its_threshold_is_dropped(isa, floor):
    x, W = torch.randint(-2, 3, (37, 130)).float(), torch.randint(-1, 2, (515, 130)).float()
    threshold = None if floor is None else torch.full((515,), floor)
    pre = x @ W.T  # small integers: exact, in fp32 and of operands rounded to bf16
    expected = torch.where(pre > (floor or 0.0), pre, 0)
    for matmul_dtype in (None, torch.bfloat16):
        with running(isa):
            code = ops.encode_relu(x, W, torch.zeros(515), threshold, matmul_dtype=matmul_dtype)
        assert torch.equal(dense(code.values, code.indices, 515, code.row_offsets), expected)
        assert len(code.values) == (pre > (floor or 0.0)).sum()


@implementations
def test_nan_is_kept(isa):
    x, W, b = encoder_inputs(ODD, torch.float32)
    x[3, 5] = float("nan")
    with running(isa):
        code = ops.encode_relu(x, W, b)
    row = code.values[code.row_offsets[3] : code.row_offsets[4]]
    assert len(row) == 515 and row.isnan().all()


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
def test_gradients(implementation):
    x, W, b = (t.requires_grad_() for t in encoder_inputs(ODD, torch.float32))
    with ops.use(implementation):
        code = ops.encode_relu(x, W, b)
        found = torch.autograd.grad(code.values.square().sum(), (x, W, b))
    expected = torch.autograd.grad((x @ W.T + b).relu().square().sum(), (x, W, b))
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_gradcheck_in_fp64():
    x, W, b = (t.double().requires_grad_() for t in encoder_inputs(Shape(4, 5, 12, 3), torch.float32))
    torch.autograd.gradcheck(lambda *a: ops.encode_relu(*a).values, (x, W, b))


def test_opcheck_and_compile():
    x, W, b = (t.requires_grad_() for t in encoder_inputs(ODD, torch.float32))
    torch.library.opcheck(
        torch.ops.trustbench.encode_relu.default,
        (x, W, b, None, None, None),
    )
    compiled = torch.compile(lambda *a: ops.encode_relu(*a).values.square(), fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x, W, b), ops.encode_relu(x, W, b).values.square())


@isas
@pytest.mark.parametrize("room", [0, 40, 10_000])
def test_a_padded_code_is_the_exact_one_where_it_fits(isa, room):
    shape = Shape(20, 9, 33, 4)
    x, W, b = encoder_inputs(shape, torch.float32)
    low = torch.full((shape.F,), -0.3)
    with running(isa):
        exact = ops.encode_relu(x, W, b, low)
        code = ops.encode_relu_padded(x, W, b, room, low)
    nnz = len(exact.values)
    assert bool(code.fits) == (nnz <= room) and len(code.values) == room
    assert code.row_offsets[-1] == min(nnz, room) and code.values.dtype == torch.float32
    if nnz <= room:
        assert torch.equal(code.values[:nnz], exact.values) and not code.values[nnz:].any()
        assert torch.equal(code.indices[:nnz], exact.indices)
        assert torch.equal(code.row_offsets, exact.row_offsets)
        rows = torch.arange(20).repeat_interleave(exact.row_offsets.diff())
        assert torch.equal(code.rows[:nnz].long(), rows)
    with pytest.raises(InputError, match="room=-1: expected an integer >= 0"):
        ops.encode_relu_padded(x, W, b, -1)


@isas
def test_values_stay_fp32_when_asked(isa):
    x, W, b = encoder_inputs(Shape(20, 9, 33, 4), torch.bfloat16)
    with running(isa):
        wide = ops.encode_relu(x, W, b, out_dtype=torch.float32).values
        narrow = ops.encode_relu(x, W, b).values
    assert wide.dtype == torch.float32 and narrow.dtype == torch.bfloat16
    assert torch.equal(wide.bfloat16(), narrow) and not torch.equal(wide.bfloat16().float(), wide)
