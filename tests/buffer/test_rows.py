"""Rows into and out of the buffer's pool: every storage, on every instruction set there is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.buffer import mx8
from trustbench import _C

F32, BF16, F16, MX8 = torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn
KINDS = [F32, BF16, F16, MX8]  # in the order of RowKind in csrc/kernels.h
SAME = [(F32, F32), (BF16, BF16), (F16, F16)]
PAIRS = [*SAME, (F32, BF16), (BF16, F32), (F32, MX8), (BF16, MX8)]

pairs = pytest.mark.parametrize("pair", PAIRS, ids=str)
sources = pytest.mark.parametrize("source", [F32, BF16], ids=str)


@pytest.fixture(params=_C.isa_names())
def isa(request):
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


class OnePool:
    """A pool of one hook point; with an offset, in memory that does not start where vectors may."""

    def __init__(self, d: int, kind: torch.dtype, capacity=100, offset=0, threads=1, host_bytes=0):
        self.d, self.kind, self.threads = d, kind, threads
        width, dtype = (mx8.row_bytes(d), torch.uint8) if kind == MX8 else (d, kind)
        memory = torch.zeros(capacity * width + offset, dtype=dtype)
        self.memory = memory[offset:].view(capacity, width)
        hooks = [(d, KINDS.index(kind), self.memory.data_ptr())]
        self.core = _C.Pool(hooks, capacity, 1, True, host_bytes, 0, "")

    def put(self, rows: Tensor) -> tuple[int, int]:
        assert rows.is_contiguous() and rows.shape[1] == self.d
        given = [(rows.data_ptr(), KINDS.index(rows.dtype))]
        return self.core.put(given, len(rows), 0, self.threads)[0]

    def take(self, n: int, peek=False, offset=0) -> Tensor:
        dtype = BF16 if self.kind == MX8 else self.kind
        out = torch.zeros(n * self.d + offset, dtype=dtype)[offset:].view(n, self.d)
        (self.core.peek if peek else self.core.take)(n, [out.data_ptr()], 0, self.threads)
        return out

    @property
    def slots(self) -> Tensor:
        return torch.from_numpy(self.core.occupied(0))


def as_stored(rows: Tensor, kind: torch.dtype) -> Tensor:
    return mx8.encode(rows) if kind == MX8 else rows.to(kind)


def as_taken(rows: Tensor, kind: torch.dtype) -> Tensor:
    return mx8.decode(mx8.encode(rows), rows.shape[1]).to(BF16) if kind == MX8 else rows.to(kind)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def in_order(rows: Tensor) -> Tensor:
    """The distinct rows, as bits."""
    return rows.view(torch.uint8).unique(dim=0)


# ------------------------------------------------------------------ any storage


@pairs
@pytest.mark.parametrize(("n", "d"), [(1, 1), (70, 64), (33, 37), (5, 130), (0, 8), (3, 1280)])
@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_in_and_out_are_the_rows(isa, pair, n, d, offset, threads):
    source, kind = pair
    pool = OnePool(d, kind, offset=offset, threads=threads)
    pool.put(torch.ones(90, d).to(source))
    pool.take(80)
    before = pool.memory.clone()
    rows = torch.randn(n, d).to(source)
    assert pool.put(rows) == (0, -1)
    places = pool.slots[10:]
    assert same_bits(pool.memory, before.index_copy(0, places, as_stored(rows, kind)))
    assert same_bits(pool.take(10 + n, peek=True, offset=offset)[10:], as_taken(rows, kind))


@pairs
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -float("nan")])
@pytest.mark.parametrize("column", [0, 63, 64, 68])
def test_rows_that_are_not_finite_are_counted(isa, pair, value, column):
    source, kind = pair
    rows = torch.randn(80, 69).to(source)
    rows[[77, 41], column] = value
    pool = OnePool(69, kind, threads=2)
    assert pool.put(rows) == (2, 41)
    assert pool.slots.numel() == 0


@pytest.mark.parametrize("d", [1, 33])
def test_what_only_overflows_when_it_is_narrowed_is_counted(isa, d):
    rows = torch.zeros(4, d)
    rows[2, -1] = 3.4e38  # finite in fp32, above bf16's largest number
    assert OnePool(d, BF16).put(rows) == (1, 2)
    assert OnePool(d, MX8).put(rows) == (0, -1)
    assert OnePool(d, BF16).put(torch.full((4, d), torch.finfo(BF16).max)) == (0, -1)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("d", [37, 64])
def test_rows_come_back_from_the_tier_below_as_they_were(isa, kind, d):
    pool = OnePool(d, kind, capacity=64, host_bytes=1 << 20)
    rows = torch.randn(200, d).to(F16 if kind == F16 else F32)
    for part in rows.split(50):
        assert pool.put(part) == (0, -1)
    taken = torch.cat([pool.take(50) for _ in range(4)])
    assert len(in_order(taken)) == 200
    assert torch.equal(in_order(taken), in_order(as_taken(rows, kind)))


def test_what_is_no_row_kind_or_not_converted_is_refused():
    with pytest.raises(ValueError, match="row kind"):
        _C.Pool([(1, 4, 0)], 1, 0)
    with pytest.raises(ValueError, match="not converted"):
        OnePool(1, F16).put(torch.zeros(1, 1))


# ------------------------------------------------------------------ MXFP8


def blocks_of(numbers: Tensor, leader: float) -> Tensor:
    """Blocks of `leader` and 31 of the numbers each, in their order."""
    numbers = torch.cat([numbers, numbers.new_zeros(-len(numbers) % 31)]).view(-1, 31)
    return torch.cat([torch.full((len(numbers), 1), leader, dtype=numbers.dtype), numbers], 1)


def halves() -> Tensor:
    """E4M3's numbers, what lies halfway between two of them, and their neighbours in fp32."""
    exact = torch.cat([mx8.E4M3, (mx8.E4M3[1:] + mx8.E4M3[:-1]) / 2]).float()
    inf = torch.tensor(float("inf"))
    near = torch.cat([exact, exact.nextafter(inf), exact[exact > 0].nextafter(-inf)])
    near = near[near <= 448]
    return torch.cat([near, -near])


def borders() -> Tensor:
    """Largest magnitudes where a block's scale changes, with neighbours; and the largest of all."""
    power = torch.tensor([-149.0, -130, -126, -111, -103, -102, -101, -1, 0, 8, 126, 127])
    m = torch.cat([a * torch.exp2(power.double()) for a in (1, 1.75, 1.875, 1.9375)]).float()
    inf = torch.tensor(float("inf"))
    near = torch.cat([m, m.nextafter(inf), m.nextafter(-inf), torch.tensor([torch.finfo(F32).max])])
    return near[near.isfinite()]


def wide(n: int, least: float, most: float) -> Tensor:
    """Random numbers, their magnitudes anywhere between two powers of two."""
    return (torch.randn(n).double() * torch.exp2(torch.empty(n).uniform_(least, most))).float()


BLOCKS = {
    "normal": lambda: torch.randn(40, 32),
    "outliers": lambda: torch.randn(40, 32) * (1 + 999 * (torch.rand(40, 32) < 0.03)),
    "tiny": lambda: 1e-30 * torch.randn(40, 32),
    "sparse": lambda: torch.randn(40, 32) * (torch.rand(40, 32) < 0.3),
    "zeros": lambda: torch.zeros(2, 32) * torch.tensor([[1.0], [-1.0]]),
    "subnormal": lambda: wide(40 * 32, -150, -126).view(40, 32),
    "any magnitude": lambda: wide(40 * 32, -150, 120).view(40, 32),
    "binades of a block": lambda: wide(40 * 32, -14, 4).view(40, 32),
    "halves": lambda: blocks_of(halves(), 448.0),
    "borders": lambda: borders()[:, None] * torch.cat([torch.ones(1), -torch.rand(31)]),
}


@sources
@pytest.mark.parametrize("d", [1, 31, 33, 37, 130, 1024, 2080])
@pytest.mark.parametrize("name", BLOCKS)
def test_mx8_rows_are_the_reference_s(isa, name, d, source):
    blocks = BLOCKS[name]()
    n, each = 50, -(-d // 32)
    rows = blocks[torch.randint(len(blocks), (n * each,))].view(n, -1)[:, :d]
    most = torch.finfo(source).max
    rows = rows.clamp(-most, most).to(source).contiguous()
    pool = OnePool(d, MX8, capacity=n)
    assert pool.put(rows) == (0, -1)
    stored = mx8.encode(rows)
    assert torch.equal(pool.memory[pool.slots], stored)
    assert same_bits(pool.take(n, peek=True), mx8.decode(stored, d).to(BF16))


def every_bf16() -> Tensor:
    """Every finite bf16, those of equal magnitude next to one another."""
    bits = torch.arange(0x7F80, dtype=torch.int32)
    return torch.stack([bits, bits - 0x8000], 1).flatten().to(torch.int16).view(BF16)


def test_every_bf16_is_rounded_as_the_reference_does(isa):
    numbers = every_bf16()
    for leader in (0.0, 1.0, 448.0, -3e38):
        rows = blocks_of(numbers if leader < 1 else numbers[numbers.abs() <= leader], leader)
        pool = OnePool(32, MX8, capacity=len(rows))
        assert pool.put(rows) == (0, -1)
        assert torch.equal(pool.memory[pool.slots], mx8.encode(rows))
    alone = numbers[:, None].contiguous()
    pool = OnePool(1, MX8, capacity=len(alone))
    assert pool.put(alone) == (0, -1)
    assert torch.equal(pool.memory[pool.slots], mx8.encode(alone))


def test_every_code_of_every_scale_is_decoded_as_the_reference_does(isa):
    codes = torch.arange(256, dtype=torch.uint8)
    scales = torch.tensor([*range(17, 248), mx8.NAN_SCALE], dtype=torch.uint8)
    pool = OnePool(256, MX8, capacity=len(scales))
    pool.put(torch.zeros(len(scales), 256))
    pool.memory[:, :256] = codes
    pool.memory[:, 256:264] = scales[:, None]
    pool.memory[:, [127, 255]] = 0  # NaN, which is no number's code
    wanted = mx8.decode(pool.memory, 256)[pool.slots]
    held = ~(wanted.abs() >= 2.0**128)  # what encode writes: nothing above it
    taken = pool.take(len(scales), peek=True)
    assert taken[scales[pool.slots] == mx8.NAN_SCALE].isnan().all()
    held &= ~wanted.isnan()
    assert same_bits(taken[held], wanted.to(BF16)[held])


@sources
@pytest.mark.parametrize("name", BLOCKS)
def test_mx8_is_within_the_format_s_error(source, name):
    """Half a unit in the last of 3 bits of mantissa, or of E4M3's smallest number, 2^-9."""
    most = torch.finfo(source).max
    rows = BLOCKS[name]().clamp(-most, most).to(source).contiguous()
    pool = OnePool(32, MX8, capacity=len(rows))
    pool.put(rows)
    error = (pool.take(len(rows), peek=True).double() - rows.double()).abs()
    unit = torch.exp2(pool.memory[pool.slots, 32:33].double() - 127)
    assert bool((error <= torch.maximum(2**-4 * rows.double().abs(), 2**-10 * unit)).all())


def test_the_reference_rounds_as_torch_does():
    codes = torch.arange(127, dtype=torch.uint8)
    assert torch.equal(codes.view(torch.float8_e4m3fn).double(), mx8.E4M3)
    numbers = torch.cat([every_bf16().float(), halves(), wide(10_000, -12, 9)])
    numbers = numbers[numbers.abs() <= 448]
    wanted = numbers.to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(mx8.to_e4m3(numbers.double()).to(torch.uint8), wanted)
