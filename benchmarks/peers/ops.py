"""Every op against what one would write in PyTorch. Each contender is a function of `Inputs`.

torch's Adam keeps no unit norm; torch's ReLU threshold keeps a dense matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize, threshold

from trustbench import ops
from trustbench.ops.parameters import Moments, Weights
from trustbench.ops.spec import Shape

_HIGH = 3.0  # of pre-activations of variance 1: about one entry in a thousand is active


class Inputs:
    """Random inputs of one shape, in fp32 unless `dtype` says otherwise; optimisers' are always fp32.

    x, grad (dL/dx_hat) [N, d]; W [F, d] of unit rows; b [F]; grad_W (dL/dW) [F, d]; `wide`, x and
    grad in fp32; the code of x, `long`, its indices as torch's own functions want them,
    `by_feature`, the code transposed, and `dense`, the code as [N, F]; weights and moments of an SAE,
    and torch's Adam of one matrix and of an SAE.
    """

    def __init__(self, shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.N, self.d, self.F, self.k = N, d, F, k = shape

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, device=device)

        self.x, self.grad = normal(N, d).to(dtype), normal(N, d).to(dtype)
        self.wide = self.x.float(), self.grad.float()
        self.W, self.grad_W = normalize(normal(F, d), dim=1).to(dtype), normal(F, d)
        self.b = torch.zeros(F, device=device, dtype=dtype)
        self.code = ops.encode_topk(self.x, self.W, self.b, k)
        self.long = self.code.indices.long()
        self.by_feature = ops.transpose_code(self.code.indices, F)
        acts = torch.zeros(N, F, device=device, dtype=dtype)
        self.dense = acts.scatter_(1, self.long, self.code.values)
        self.weights = Weights(*(t.float().clone() for t in (self.W, self.W, self.b)))
        self.moments = Moments.zeros_like(self.weights)
        self.adam_of_one, self.adam_of_an_sae = _adam(self.W), _adam(self.W, self.W, self.b)


def _adam(*like: Tensor) -> torch.optim.Optimizer:
    """torch's fastest Adam, on parameters that have their gradients."""
    parameters = [w.float().clone().requires_grad_() for w in like]
    for p in parameters:
        p.grad = torch.randn_like(p)
    return torch.optim.Adam(parameters, lr=1e-6, fused=True)


def _bag(i: Inputs) -> Tensor:
    return embedding_bag(i.long, i.W, per_sample_weights=i.code.values, mode="sum")


def _add_rows(i: Inputs) -> Tensor:
    """Builds [N k, d]."""
    terms = (i.code.values[:, :, None] * i.x[:, None]).flatten(0, 1)
    return torch.zeros_like(i.W).index_add_(0, i.long.flatten(), terms)


@torch.no_grad()
def _add_rows_and_step(i: Inputs) -> None:
    """Both gradients as dense matrices, through [N k, d], the decoder's projected; fused Adam."""
    W_enc, W_dec, b_enc = i.adam_of_an_sae.param_groups[0]["params"]
    x, grad = i.wide
    features, values = i.long.flatten(), i.code.values.float()
    da = torch.einsum("nkd,nd->nk", W_dec[i.long], grad) * (values > 0)
    b_enc.grad.zero_().index_add_(0, features, da.flatten())
    for W, a, rows in ((W_enc, da, x), (W_dec, values, grad)):
        W.grad.zero_().index_add_(0, features, (a[:, :, None] * rows[:, None]).flatten(0, 1))
    W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
    i.adam_of_an_sae.step()
    W_dec /= W_dec.norm(dim=1, keepdim=True)


def _dense_relu(i: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    acts = (i.x @ i.W.T + i.b).relu()
    return acts, acts.sum(0), (acts > 0).sum(0)


def _unit_adam(i: Inputs) -> None:
    w, m = i.weights.W_dec, i.moments
    ops.adam_(w, i.grad_W, m.m_W_dec, m.v_W_dec, step=1, lr=1e-6, unit_norm=True)


def _sparse_adam(i: Inputs) -> None:
    values = i.code.values.float()
    ops.sparse_adam_(i.weights, values, i.by_feature, *i.wide, i.moments, step=1, lr=1e-6)


# {op: {contender: what runs}}; "trustbench" is the op, whose SPEC says the floor.
CONTENDERS: dict[str, dict[str, Callable[[Inputs], Any]]] = {
    "adam": {"trustbench": _unit_adam, "torch: Adam alone": lambda i: i.adam_of_one.step()},
    "code_grad": {
        "trustbench": lambda i: ops.code_grad(i.grad, i.code.indices, i.W),
        "torch: gather, einsum": lambda i: torch.einsum("nd,nkd->nk", i.grad, i.W[i.long]),
        "torch: dense matmul, gather": lambda i: (i.grad @ i.W.T).gather(1, i.long),
    },
    "decode": {
        "trustbench": lambda i: ops.decode(i.code.values, i.code.indices, i.W),
        "torch: embedding_bag": _bag,
        "torch: dense matmul": lambda i: i.dense @ i.W,
    },
    "encode_batchtopk": {
        "trustbench": lambda i: ops.encode_batchtopk(i.x, i.W, i.b, i.k),
        "torch: matmul, topk": lambda i: (i.x @ i.W.T + i.b).flatten().topk(i.N * i.k, sorted=False),
    },
    "encode_relu": {
        "trustbench": lambda i: ops.encode_relu(i.x, i.W, i.b, i.b + _HIGH),
        "torch: matmul, threshold": lambda i: threshold(i.x @ i.W.T + i.b, _HIGH, 0.0),
    },
    "encode_topk": {
        "trustbench": lambda i: ops.encode_topk(i.x, i.W, i.b, i.k),
        "torch: matmul, topk": lambda i: (i.x @ i.W.T + i.b).topk(i.k, sorted=False),
        "torch: matmul alone": lambda i: i.x @ i.W.T,
    },
    "mask_gradient": {
        "trustbench": lambda i: ops.mask_gradient_(i.dense, i.dense.clone(), i.b.float()),
        "torch: where, sum": lambda i: torch.where(i.dense > 0, i.dense + i.b, 0.0).sum(0),
    },
    "reconstruct": {
        "trustbench": lambda i: ops.reconstruct(i.code.values, i.code.indices, i.W, i.x[0], i.x),
        "torch: embedding_bag, residual": lambda i: (_bag(i) - i.x).square().sum(1),
    },
    "relu_dense": {
        "trustbench": lambda i: ops.relu_dense(i.x, i.W, i.b),
        "torch: matmul, relu, sums": _dense_relu,
    },
    "sparse_adam": {"trustbench": _sparse_adam, "torch: index_add, Adam": _add_rows_and_step},
    "transpose_code": {
        "trustbench": lambda i: ops.transpose_code(i.code.indices, i.F),
        "torch: stable sort": lambda i: i.code.indices.flatten().sort(stable=True),
    },
    "weight_grad": {
        "trustbench": lambda i: ops.weight_grad(i.code.values, i.code.indices, i.x, i.F),
        "torch: index_add": _add_rows,
        "torch: dense matmul": lambda i: i.dense.T @ i.x,
    },
}
