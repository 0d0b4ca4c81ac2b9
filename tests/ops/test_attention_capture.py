"""attention_capture: output and statistics against full matrices, on every implementation."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.ops.cases import ISAS, assert_accurate, implementations, isas, running
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops.attention_masks import first_keys, visible, visible_counts


class Case(NamedTuple):
    """Sizes (B, H, H_kv, T, S, D) and options of one call."""

    sizes: tuple[int, int, int, int, int, int]
    options: dict[str, Any] = {}  # noqa: RUF012  never changed
    segments: str = ""  # of the keys, a character each, "-" for padding; rows of a batch by "/"
    sinks: bool = False
    alibi: bool = False

    def __str__(self) -> str:
        words = ["x".join(map(str, self.sizes)), *(f"{k}={v}" for k, v in self.options.items())]
        words += ["sinks"] * self.sinks + ["ALiBi"] * self.alibi
        return " ".join(words + [self.segments][: bool(self.segments)])


CASES = [
    Case((1, 1, 1, 1, 1, 1)),
    Case((2, 4, 4, 7, 7, 16)),
    Case((2, 6, 2, 37, 37, 24), {"top": 3}),
    Case((1, 4, 1, 70, 70, 64), {"top": 16, "last_n": 3}),
    Case((1, 2, 1, 5, 33, 80), {"top": 2}),
    Case((1, 2, 2, 1, 40, 128)),
    Case((1, 2, 1, 19, 19, 256), {"causal": False}),
    Case((1, 4, 2, 50, 50, 16), {"window": 7, "top": 9}),
    Case((1, 4, 2, 30, 30, 16), {"window": 1}),
    Case((1, 2, 1, 21, 21, 16), {"window": 5, "causal": False, "top": 4}),
    Case((1, 2, 1, 9, 25, 16), {"window": 6}),
    Case((1, 4, 2, 33, 33, 16), {"softcap": 1.5, "scale": 0.7, "top": 2}),
    Case((2, 4, 2, 18, 18, 16), {"top": 2}, sinks=True),
    Case((2, 2, 1, 12, 12, 16), {"top": 5}, "aaabbbbbb---/---aaccccaaa"),
    Case((2, 2, 1, 5, 12, 16), {"window": 3}, "aaabbbbbb---/---aaccccaaa", True),
    Case((1, 2, 1, 6, 6, 16), {"causal": False, "top": 0}, "aab-bb"),
    Case((1, 2, 1, 4, 4, 8), {}, "----", True),
    Case((2, 6, 2, 37, 37, 24), {"top": 3}, alibi=True),
    Case((1, 2, 1, 540, 540, 8), alibi=True),
    Case((1, 2, 1, 5, 33, 80), {"softcap": 1.5, "scale": 0.7, "window": 20}, alibi=True),
    Case((2, 2, 1, 12, 12, 16), {"top": 5}, "aaabbbbbb---/---aaccccaaa", True, True),
    Case((1, 2, 2, 21, 21, 16), {"causal": False, "top": 0}, alibi=True),
    Case((0, 2, 1, 4, 4, 8)),
    Case((1, 2, 1, 0, 5, 8), {"top": 2}),
    Case((1, 2, 1, 0, 0, 8)),
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# In Triton's interpreter, where a cell takes seconds, bf16 and fp16 go over a third of the cases
# each; tests/kernels/test_attention.py has every option in both.
CELLS = [
    pytest.param(isa, case, dtype, id=f"{kind}-{case}-{isa}")
    for place, (kind, dtype) in enumerate(DTYPES.items())
    for i, case in enumerate(CASES)
    for isa in ("reference", *ISAS, "triton")
    if isa != "triton" or torch.cuda.is_available() or place == 0 or i % 3 == place
]


def inputs(case: Case, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    B, H, H_kv, T, S, D = case.sizes
    q, k, v = torch.randn(B, H, T, D), torch.randn(B, H_kv, S, D), torch.randn(B, H_kv, S, D)
    options = dict(case.options)
    if case.segments:
        ids = [["-abc".index(c) - 1 for c in row] for row in case.segments.split("/")]
        options["segments"] = torch.tensor(ids, dtype=torch.int32)
    if case.sinks:
        options["sinks"] = torch.randn(H)
    if case.alibi:
        slopes = 2.0 ** (-1 - torch.arange(H)) + torch.rand(B, H)  # of every row's own
        options["key_bias"] = slopes[..., None] * torch.arange(S)
    options["targets"] = torch.randint(-1, max(S, 1), (B, T, 2), dtype=torch.int32)
    if not S:
        options["targets"] = torch.full((B, T, 2), -1, dtype=torch.int32)
    return (q.to(dtype), k.to(dtype), v.to(dtype)), options


def expected(qkv: tuple[Tensor, ...], options: dict[str, Any], wide: torch.dtype) -> ops.Attention:
    """The statistics from full matrices, with every definition written out."""
    q, k, v = (t.to(wide) for t in qkv)
    (B, H, T, D), S = q.shape, k.shape[2]
    k, v = (t.repeat_interleave(H // t.shape[1], 1) for t in (k, v))
    s = torch.einsum("bhtd,bhsd->bhts", q, k) * options.get("scale", D**-0.5)
    if cap := options.get("softcap"):
        s = cap * (s / cap).tanh()
    at = torch.arange(S - T, S)
    away = at[:, None] - torch.arange(S)
    if (bias := options.get("key_bias")) is not None:
        s = s + (bias.to(wide)[:, :, None] - bias.to(wide)[:, :, at, None])
    seen = torch.ones(B, 1, T, S, dtype=torch.bool)
    if options.get("causal", True):
        seen = seen & (away >= 0)
    if window := options.get("window"):
        seen = seen & (away.abs() < window)
    segments = options.get("segments", torch.zeros(B, S, dtype=torch.int32))
    mine = segments[:, at]
    seen = seen & ((mine[:, :, None] == segments[:, None]) & (mine >= 0)[:, :, None])[:, None]
    e = torch.where(seen, s.exp(), 0)
    z = e.sum(3)
    if (sinks := options.get("sinks")) is not None:
        z = z + sinks.to(wide).exp()[None, :, None]
    p = torch.where(z[..., None] > 0, e / z[..., None], 0)
    entropy = -torch.where(p > 0, p * p.log(), 0).sum(3)
    total = p.sum(3)
    distance = torch.where(total > 0, (p * away).sum(3) / total, 0)
    top = options.get("top", 1)
    order = torch.where(seen, p, -1).sort(dim=3, descending=True, stable=True)
    top_p, top_index = torch.zeros(B, H, T, top, dtype=wide), torch.full((B, H, T, top), -1)
    kept = min(top, S)
    top_p[..., :kept] = order.values[..., :kept].clamp_min(0)
    top_index[..., :kept] = torch.where(order.values >= 0, order.indices, -1)[..., :kept]
    last = (p * ((away >= 0) & (away < options.get("last_n", 8)))).sum(3)

    def mass(positions: Tensor) -> Tensor:
        wanted = (positions[:, None, :, None] == torch.arange(S)) & (positions >= 0)[:, None, :, None]
        return (p * wanted).sum(3)

    first = torch.full((B, T), -1)
    for b in range(B):
        for t in range(T):
            if mine[b, t] >= 0:
                first[b, t] = int((segments[b] == mine[b, t]).nonzero()[0])
    targets = torch.stack([mass(options["targets"][:, :, i]) for i in range(2)], 3)
    own = at.expand(B, T)
    return ops.Attention(
        p @ v, z.log(), entropy, distance, last, top_p, top_index.int(), mass(first), mass(own),
        mass(own - 1), targets,
    )  # fmt: skip


@pytest.mark.parametrize(("isa", "case", "dtype"), CELLS)
def test_it_is_attention_and_its_statistics(isa, case, dtype):
    qkv, options = inputs(case, dtype)
    with running(isa, threads=2):
        found = ops.attention_capture(*qkv, **options)
    exact = expected(qkv, options, torch.float64)
    plain = expected(qkv, options, torch.float32)
    assert_accurate(found.out, plain.out.to(dtype), exact.out)
    for name in ops.Attention._fields[1:]:
        mine, wanted = getattr(found, name), getattr(exact, name)
        if name == "top_index":
            continue
        assert mine.dtype == torch.float32 and mine.shape == wanted.shape, name
        # The bound, 1e-5 relative; what is nearly 0 is that small against the largest.
        scale = wanted[wanted.isfinite()].abs().max() if wanted.isfinite().any() else 1.0
        torch.testing.assert_close(
            mine.double(), wanted, rtol=1e-5, atol=1e-5 * max(float(scale), 1e-3), msg=name
        )
    there = exact.top_index >= 0
    assert torch.equal(found.top_index >= 0, there)
    # An index that differs passes where the probabilities are equal to rounding.
    p = torch.where(there, exact.top_p, 0)
    other = found.top_index != exact.top_index
    assert torch.all((found.top_p.double() - p).abs()[other] <= 1e-5 * p[other] + 1e-12)
    assert other.double().mean() < 0.02 if other.numel() > 100 else not other.any()


@implementations
def test_of_equals_the_lower_position_comes_first(isa):
    q, k, v = torch.randn(1, 2, 40, 16), torch.zeros(1, 1, 40, 16), torch.randn(1, 1, 40, 16)
    with running(isa):
        found = ops.attention_capture(q, k, v, top=4)
    wanted = torch.arange(4).expand(1, 2, 40, 4).clone()
    for t in range(3):
        wanted[:, :, t, t + 1 :] = -1
    assert torch.equal(found.top_index.long(), wanted)
    counts = torch.arange(1, 41).log().expand(1, 2, 40)
    torch.testing.assert_close(found.entropy, counts, rtol=1e-5, atol=1e-6)  # uniform rows


@isas
def test_results_do_not_depend_on_threads(isa):
    if isa == "triton":
        pytest.skip("Triton's grid has no threads to choose")
    qkv, options = inputs(CASES[3], torch.float32)
    results = []
    for threads in (1, 3):
        with running(isa, threads):
            results.append(ops.attention_capture(*qkv, **options))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@implementations
def test_large_scores_do_not_overflow(isa):
    q, k, v = (
        30 * torch.randn(1, 2, 33, 16),
        30 * torch.randn(1, 1, 33, 16),
        torch.randn(1, 1, 33, 16),
    )
    with running(isa):
        found = ops.attention_capture(q, k, v, sinks=torch.tensor([500.0, -500.0]))
    assert all(torch.isfinite(t).all() for t in found)
    assert found.entropy.min() >= -1e-4 and found.top_p.max() <= 1


def test_it_is_torchs_attention():
    q, k, v = (torch.randn(2, h, 20, 16) for h in (6, 2, 2))
    wanted = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(ops.attention_capture(q, k, v).out, wanted)


@pytest.mark.parametrize(
    "options", [{}, {"window": 3}, {"softcap": 2.0}, {"causal": False}, {"segments": True}], ids=str
)
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients(options, sinks, bias):
    given = [torch.randn(2, h, 9, 5, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2)]
    given.append(torch.randn(2, 4, 9, dtype=torch.float64, requires_grad=True) if bias else None)
    if sinks:
        given.append(torch.randn(4, dtype=torch.float64, requires_grad=True))
    if options.get("segments"):
        ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1, -1], [-1, 5, 5, 2, 2, 2, 5, 5, 5]])
        options = {"segments": ids.int()}

    def out(q: Tensor, k: Tensor, v: Tensor, b: Tensor | None, s: Tensor | None = None) -> Tensor:
        return ops.attention_capture(q, k, v, sinks=s, key_bias=b, **options).out

    assert torch.autograd.gradcheck(out, given)


@implementations
def test_gradients_of_every_implementation(isa):
    case = CASES[2]
    qkv, options = inputs(case, torch.float32)
    exact = [t.double().requires_grad_() for t in qkv]
    given = [t.requires_grad_() for t in qkv]
    weight = torch.randn(*case.sizes[:2], case.sizes[3], case.sizes[5])
    with running(isa):
        found = ops.attention_capture(*given, **options)
        assert not found.entropy.requires_grad  # statistics carry none
        (found.out * weight).sum().backward()
    (ops.attention_capture(*exact, **options).out * weight).sum().backward()
    for mine, wanted in zip(given, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), wanted.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_opcheck(bias):
    qkv, options = inputs(CASES[1], torch.float32)
    B, _, _, T, S, D = CASES[1].sizes
    targets = torch.cat([options["targets"], torch.zeros(B, T, 3, dtype=torch.int32)], 2)
    key_bias = torch.randn(*CASES[1].sizes[:2], S, requires_grad=True) if bias else None
    given = (
        *(t.requires_grad_() for t in qkv), None, None, key_bias, targets, True, 0, D**-0.5, 0.0,
        1, 8,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.trustbench.attention_capture.default, given)
    assert S == T


def test_masks_agree_with_their_counts():
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1, -1], [-1, 5, 5, 2, 2, 2, 5, 5, 5]]).int()
    cpu = torch.device("cpu")
    for causal in (True, False):
        for window in (None, 1, 3):
            for T in (9, 4):
                at = torch.arange(9 - T, 9)
                for segments in (ids, None):
                    seen = visible(at, 9, causal, window or 0, segments)
                    counts = visible_counts(2, T, 9, causal, window, segments, cpu)
                    assert torch.equal(seen.sum(-1).view(-1, T).expand(2, T), counts)
    assert first_keys(ids, 2, 9, 9, cpu)[1].tolist() == [-1, 1, 1, 3, 3, 3, 1, 1, 1]


def test_bad_input_is_named():
    q, k, v = (torch.randn(1, h, 6, 8) for h in (4, 2, 2))
    for changes, words in (
        ({"k": k[:, :0], "v": v[:, :0]}, "a number of kv heads that divides the 4 of q"),
        ({"k": torch.randn(1, 3, 6, 8), "v": torch.randn(1, 3, 6, 8)}, "divides the 4 of q"),
        ({"k": k[:, :, :5], "v": v[:, :, :5]}, "at least as many keys as the 6 queries"),
        ({"window": 0}, "window=0: expected an integer >= 1"),
        ({"window": -3}, "window=-3"),
        ({"top": 17}, r"top=17: expected an integer in \[0, 16\]"),
        ({"top": -1}, "top=-1"),
        ({"last_n": 0}, "last_n=0"),
        ({"softcap": -1.0}, r"softcap=-1\.0: expected a number > 0"),
        ({"scale": float("nan")}, "scale=nan"),
        (
            {"targets": torch.full((1, 6, 1), 6, dtype=torch.int32)},
            r"targets=\[-1, 6\]: expected pos",
        ),
    ):
        with pytest.raises(InputError, match=words):
            ops.attention_capture(**{"q": q, "k": k, "v": v} | changes)
