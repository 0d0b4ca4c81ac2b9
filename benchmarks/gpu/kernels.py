"""Every kernel against its floor, and against what others would run in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.clock import Clock, floor
from benchmarks.roofline import Ceilings
from trustbench.ops import dispatch
from trustbench.ops.spec import Shape

_KERNELS = (
    "encode_topk", "decode", "code_grad", "reconstruct", "transpose_code", "weight_grad", "adam",
    "sparse_adam", "_dense_grad", "encode_relu", "encode_batchtopk",
)  # fmt: skip


class Timing(NamedTuple):
    """One kernel at one shape; seconds."""

    name: str
    ours: float
    floor: float
    others: dict[str, float | str]  # or why it has no figure


def run(shape: Shape, clock: Clock, ceilings: Ceilings) -> list[Timing]:
    """All kernels in bf16 at `shape`."""
    timings = []
    for name, ours, least, others in _cases(shape, clock.device, ceilings):
        theirs: dict[str, float | str] = {}
        for other, function in others.items():
            try:
                theirs[other] = clock.seconds(function)
            except ImportError:
                theirs[other] = "absent"
            except Exception as error:  # out of memory, say: the table tells
                theirs[other] = type(error).__name__
        timings.append(Timing(name, clock.seconds(ours), least, theirs))
    return timings


Case = tuple[str, Callable[[], Any], float, dict[str, Callable[[], Any]]]


def _cases(shape: Shape, device: torch.device, ceilings: Ceilings) -> Iterator[Case]:
    N, d, F, k = shape
    x = torch.randn(N, d, device=device).bfloat16()
    W = (torch.randn(F, d, device=device) / d**0.5).bfloat16()
    W_dec = torch.nn.functional.normalize(torch.randn(F, d, device=device), dim=1)
    narrow, b, b_dec = W_dec.bfloat16(), torch.zeros(F, device=device), torch.zeros(d, device=device)
    kernels = {name: dispatch.triton(name) for name in _KERNELS}

    def plain_topk() -> Any:
        return (x @ W.T).topk(k, sorted=False)

    compiled = torch.compile(lambda x, W: (x @ W.T).topk(k, sorted=False))
    yield (
        f"encode_topk, k = {k}",
        lambda: kernels["encode_topk"].encode_topk(x, W, b, k),
        floor(ceilings, 2.0 * (N * d + F * d) + 8.0 * N * k, 2.0 * N * d * F),
        {"matmul alone": lambda: x @ W.T, "matmul + topk": plain_topk}
        | {"torch.compile": lambda: compiled(x, W)},
    )

    values, indices = kernels["encode_topk"].encode_topk(x, W, b, k)
    low = b - values[:, -1].mean()  # about k entries a token are above 0
    relu, size = kernels["encode_relu"], 4 * N * k
    yield (
        f"encode_relu, L0 about {k}",
        lambda: relu.padded(x, W, low, size),
        floor(ceilings, 2.0 * (N * d + F * d) + 8.0 * N * k, 2.0 * N * d * F),
        {"matmul + relu": lambda: (x @ W.T).relu()},
    )
    yield (
        "encode_relu, dense form with its sums",
        lambda: relu.dense(x, W, b),
        floor(ceilings, 2.0 * (N * d + F * d + N * F), 2.0 * N * d * F),
        {"matmul + relu": lambda: (x @ W.T).relu()},
    )
    yield (
        f"encode_batchtopk, k = {k}",
        lambda: kernels["encode_batchtopk"].padded(x, W, b, k),
        floor(ceilings, 2.0 * (N * d + F * d) + 8.0 * N * k, 2.0 * N * d * F),
        {"matmul + topk": lambda: (x @ W.T).flatten().topk(N * k, sorted=False)},
    )
    gathered = 2.0 * N * k * d  # every row a token reads, counted each time
    bag = torch.nn.functional.embedding_bag
    long = indices.long()
    yield (
        "decode",
        lambda: kernels["decode"].decode(values, indices, narrow, None),
        floor(ceilings, gathered + 2.0 * N * d + 8.0 * N * k),
        {
            "embedding_bag": lambda: bag(
                long, narrow, per_sample_weights=values.bfloat16(), mode="sum"
            ),
            "sparsify's kernel": lambda: _sparsify_decode(long, values.bfloat16(), narrow),
        },
    )

    def residual(values: Tensor, W: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        error = (values[:, :, None] * W[long]).sum(1) + b_dec - x
        return error, error.float().square().sum(1)

    compiled_residual = torch.compile(residual)
    for gradient in (False, True):
        yield (
            f"reconstruct{', with dvalues' if gradient else ''}",
            lambda g=gradient: kernels["reconstruct"].reconstruct(
                values, indices, narrow, b_dec, x, None, gradient=g, error_dtype=torch.bfloat16
            ),
            floor(ceilings, gathered + 4.0 * N * d + (12.0 if gradient else 8.0) * N * k),
            {} if gradient else {"torch.compile": lambda: compiled_residual(values, narrow, x)},
        )
    error = torch.randn(N, d, device=device).bfloat16()
    yield (
        "code_grad",
        lambda: kernels["code_grad"].code_grad(error, indices, narrow, None),
        floor(ceilings, gathered + 2.0 * N * d + 8.0 * N * k),
        {"gather + einsum": lambda: torch.einsum("nd,nkd->nk", error, narrow[long])},
    )
    yield (
        "transpose_code",
        lambda: kernels["transpose_code"].transpose_code(indices, F),
        floor(ceilings, 12.0 * N * k + 8.0 * F),
        {"stable sort": lambda: indices.flatten().sort(stable=True)},
    )
    code = kernels["transpose_code"].transpose_code(indices, F)
    rows = torch.arange(N, device=device).repeat_interleave(k)

    def index_add() -> Any:
        terms = values.flatten()[:, None] * error[rows]
        return torch.zeros(F, d, device=device).index_add_(0, long.flatten(), terms)

    yield (
        "weight_grad",
        lambda: kernels["weight_grad"].weight_grad(values, code, error),
        floor(ceilings, gathered + 2.0 * F * d + 12.0 * N * k),
        {"index_add": index_add},
    )

    weights = [W.float(), W_dec.clone(), b.clone()]
    moments = [torch.zeros_like(w) for w in weights for _ in range(2)]
    copies = (W.clone(), narrow.clone())
    figures = kernels["adam"].on_device(kernels["adam"].scalars(1, 1e-5, 0.9, 0.999, 1e-4), device)
    options = ((0.9, 0.999), 1e-8, True, False)
    optimiser = 2.0 * F * d * (24 + 2)
    parameters = [w.clone().requires_grad_() for w in weights[:2]]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    library = torch.optim.Adam(parameters, fused=True)
    yield (
        "sparse_adam (both gradients, Adam, unit norm, copies)",
        lambda: kernels["sparse_adam"].sparse_adam(
            weights, moments, copies, values, code, x, error, figures, *options
        ),
        floor(ceilings, optimiser + 4.0 * N * d + 12.0 * N * k),
        {"torch Adam(fused) alone": library.step},
    )
    grad = torch.randn(F, d, device=device)
    yield (
        "adam, one matrix",
        lambda: kernels["adam"].adam(
            weights[1], grad, *moments[2:4], figures, 0.9, 0.999, 1e-8, True, copies[1]
        ),
        floor(ceilings, F * d * (28.0 + 2)),
        {},
    )
    acts = (x @ W.T).relu()
    dacts = torch.randn_like(acts)
    slope = torch.full((F,), 1e-3, device=device)
    yield (
        "mask of the dense regime",
        lambda: kernels["_dense_grad"].mask_gradient(acts, dacts, slope),
        floor(ceilings, 6.0 * N * F),
        {},
    )


def _sparsify_decode(indices: Tensor, values: Tensor, W: Tensor) -> Tensor:
    from sparsify.utils import decoder_impl

    return decoder_impl(indices, values, W.mT)
