"""Attention of one row with its statistics: the op, full matrices, and torch's own without."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.peers.base import Contender, version_of

SMALL = {"T": 64}


@dataclass
class Attention(Contender):
    """`run` gives the output [1, H, T, D] from q, k, v."""

    T: int
    D: int
    heads: int
    kv_heads: int
    bf16: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        torch.manual_seed(0)
        self.q, self.k, self.v = (
            torch.randn(1, n, self.T, self.D, device=self.device).to(dtype)
            for n in (self.heads, self.kv_heads, self.kv_heads)
        )
        self.build()

    def build(self) -> None:
        """What is needed once."""

    @torch.no_grad()
    def run(self, _: None) -> Tensor:
        return self.attend(self.q, self.k, self.v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class Capture(Attention):
    """The op, with all its statistics."""

    def build(self) -> None:
        self.version = version_of("trustbench")

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from trustbench.ops import attention_capture

        return attention_capture(q, k, v).out


class Sdpa(Attention):
    """torch's attention alone: nothing is captured."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class Flex(Attention):
    """flex_attention, compiled, alone: nothing is captured."""

    def build(self) -> None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        T = self.q.shape[2]
        self.mask = create_block_mask(
            lambda b, h, i, j: i >= j, None, None, T, T, device=self.q.device
        )
        self.flex = torch.compile(flex_attention, dynamic=False)
        self.flex(self.q, self.k, self.v, block_mask=self.mask, enable_gqa=True)  # compiles

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.flex(q, k, v, block_mask=self.mask, enable_gqa=True)


class Eager(Attention):
    """Full matrices, and the statistics as one would write them."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        T, D, group = q.shape[2], q.shape[3], q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        at = torch.arange(T, device=q.device)
        away = at[:, None] - at
        s = (q @ k.transpose(2, 3)).float() * D**-0.5
        s = s.masked_fill(away < 0, -torch.inf)
        s.logsumexp(3)
        p = s.softmax(3)
        torch.special.entr(p).sum(3)
        (p * away).sum(3)
        (p * ((away >= 0) & (away < 8))).sum(3)
        p.max(3)
        p[..., 0].clone(), p.diagonal(0, 2, 3).clone(), p.diagonal(-1, 2, 3).clone()
        return p.to(v.dtype) @ v


CONTENDERS: dict[str, type[Attention]] = {
    "trustbench": Capture,
    "eager, full matrices": Eager,
    "SDPA, no statistics": Sdpa,
    "flex_attention, no statistics": Flex,
}
