"""Every kernel against its definition, on the device, at sizes that fill it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from trustbench import ops
from trustbench.ops import dispatch
from trustbench.ops.sparse_adam import Moments, Weights
from trustbench.ops.spec import Shape


def run(shape: Shape, device: torch.device) -> dict[str, str]:
    """{check: "ok", or what is wrong}; memory is poisoned, and everything is run twice."""
    results = {}
    for name, check in _checks(shape, device):
        try:
            with poisoned_memory():
                first, second = check(), check()
            same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            results[name] = "ok" if same else "differs from run to run"
        except Exception as error:  # one failing kernel must not hide the others
            results[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return results


class poisoned_memory:
    """torch.empty gives NaN inside: what a kernel forgets to write shows."""

    def __enter__(self) -> None:
        self._empty = torch.empty

        def poisoned(*args, **kwargs):  # type: ignore[no-untyped-def]
            tensor = self._empty(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-1)

        torch.empty = poisoned  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        torch.empty = self._empty


def _checks(shape: Shape, device: torch.device) -> Iterator[tuple[str, Callable[[], list[Tensor]]]]:
    N, d, F, k = shape
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, device=device, generator=generator)

    x, W = normal(N, d), normal(F, d) / d**0.5
    W_dec = torch.nn.functional.normalize(normal(F, d), dim=1)
    b, b_dec, target = 0.1 * normal(F), 0.1 * normal(d), normal(N, d)

    def pre(kind: torch.dtype) -> Tensor:
        return x.to(kind).double() @ W.to(kind).double().T + b.double()

    def close(a: Tensor, e: Tensor, slack: float) -> None:
        error = (a.double() - e.double()).abs().max().item()
        assert error <= slack * max(1.0, e.abs().max().item()), f"error {error:.3g}"

    for kind, slack in ((torch.bfloat16, 2.0**-17), (torch.float32, 2.0**-18)):
        tag = str(kind).removeprefix("torch.")

        def topk(kind: torch.dtype = kind, slack: float = slack, k: int = k) -> list[Tensor]:
            found = ops.encode_topk(x, W, b, k, matmul_dtype=kind)
            exact = pre(kind)
            close(found.values, exact.topk(k).values.relu(), slack)
            close(exact.gather(1, found.indices.long()).relu(), exact.topk(k).values.relu(), slack)
            return [found.values, found.indices]

        yield f"encode_topk {tag}", topk
        if kind == torch.bfloat16:  # nearly every row overflows some bucket, and is done again
            yield f"encode_topk {tag}, k = {8 * k}", lambda f=topk: f(k=min(8 * k, F))

        def relu(kind: torch.dtype = kind, slack: float = slack) -> list[Tensor]:
            found = ops.encode_relu(x, W, b, matmul_dtype=kind)
            exact, wide = pre(kind), torch.zeros(N, F, dtype=torch.float64, device=device)
            rows = torch.repeat_interleave(torch.arange(N, device=device), found.row_offsets.diff())
            wide[rows, found.indices.long()] = found.values.double()
            close(wide, exact.relu(), slack)
            return list(found)

        yield f"encode_relu {tag}", relu

        def batchtopk(kind: torch.dtype = kind, slack: float = slack) -> list[Tensor]:
            found = ops.encode_batchtopk(x, W, b, k, matmul_dtype=kind)
            assert len(found.values) == N * k, f"{len(found.values)} entries"
            top = pre(kind).flatten().topk(N * k).values
            close(found.values.sort(descending=True).values, top, slack)
            return list(found)

        yield f"encode_batchtopk {tag}", batchtopk

    # What a training step runs: the same codes, in memory of a size that is known beforehand.
    narrow_x, narrow_W = x.bfloat16(), W.bfloat16()
    relu_kernels = dispatch.triton("encode_relu")
    batch_kernels = dispatch.triton("encode_batchtopk")

    def padded(exact: Any, code: Any, fits: Tensor) -> list[Tensor]:
        assert bool(fits.all()), "no room"
        values, indices, offsets = exact
        n = len(values)
        assert torch.equal(code.values[:n], values) and not code.values[n:].any()
        assert torch.equal(code.indices[:n], indices) and torch.equal(code.row_offsets, offsets)
        return list(code)

    def padded_relu() -> list[Tensor]:
        exact = relu_kernels.encode_relu(narrow_x, narrow_W, b, None)
        return padded(exact, *relu_kernels.padded(narrow_x, narrow_W, b, len(exact[0]) + 1000))

    def padded_batchtopk() -> list[Tensor]:
        exact = batch_kernels.encode_batchtopk(narrow_x, narrow_W, b, k)
        return padded(exact, *batch_kernels.padded(narrow_x, narrow_W, b, k))

    def dense_relu() -> list[Tensor]:
        acts, mass, fired = relu_kernels.dense(narrow_x, narrow_W, b)
        exact = pre(torch.bfloat16).relu()
        close(acts, exact, 2.0**-7)
        close(mass / N, exact.mean(0), 2.0**-15)
        assert torch.equal(fired.long(), (acts > 0).sum(0)), "fired"
        return [acts, mass, fired]

    yield "encode_relu, padded", padded_relu
    yield "encode_batchtopk, padded", padded_batchtopk
    yield "encode_relu, dense form", dense_relu

    code = ops.encode_topk(x, W, b, k, matmul_dtype=torch.bfloat16)
    acts = torch.zeros(N, F, device=device).scatter(1, code.indices.long(), code.values).double()

    def decode() -> list[Tensor]:
        found = ops.decode(code.values, code.indices, W_dec)
        close(found, acts @ W_dec.double(), 1e-5)
        return [found]

    yield "decode", decode

    def reconstruct() -> list[Tensor]:
        values = code.values.clone().requires_grad_()
        error, squared = ops.reconstruct(values, code.indices, W_dec, b_dec, target)
        exact = acts @ W_dec.double() + b_dec.double() - target.double()
        close(error, exact, 1e-5)
        close(squared, exact.square().sum(1), 1e-5)
        (dvalues,) = torch.autograd.grad(squared.sum(), values)
        close(dvalues, (2 * exact @ W_dec.double().T).gather(1, code.indices.long()), 1e-4)
        return [error.detach(), squared.detach(), dvalues]

    yield "reconstruct", reconstruct

    def transpose() -> list[Tensor]:
        found = ops.transpose_code(code.indices, F)
        with ops.use("reference"):
            expected = ops.transpose_code(code.indices, F)
        for a, e in zip(found, expected, strict=True):
            assert torch.equal(a, e), "differs from the stable sort"
        return list(found)

    yield "transpose_code", transpose

    def weight_grad() -> list[Tensor]:
        dW, db = ops.weight_grad(code.values, code.indices, target, F)
        close(dW, acts.T @ target.double(), 1e-4)
        close(db, acts.sum(0), 1e-4)
        return [dW, db]

    yield "weight_grad", weight_grad

    hot = code.indices.clone()
    hot[:, 0] = 0  # one feature on every token: its entries are shared out
    hot_values = code.values.masked_fill(hot == 0, 0)
    hot_values[:, 0] = 1.0

    def sparse_adam() -> list[Tensor]:
        results = []
        for context in (ops.use("auto"), ops.use("reference")):
            mine = Weights(W.clone(), W_dec.clone(), b.clone())
            moments = Moments.zeros_like(mine)
            with context:
                by_feature = ops.transpose_code(hot, F)
                through = ops.sparse_adam_(
                    mine, hot_values, by_feature, x, target, moments, step=1, lr=1e-3, eps=1e-3
                )
            results.append([*mine, *moments, through])
        for a, e in zip(*results, strict=True):
            close(a, e, 1e-4)
        return results[0]

    yield "sparse_adam", sparse_adam
