"""SAE: an ordinary nn.Module over the ops."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trustbench import files, ops
from trustbench.errors import CheckpointError, InputError, bad
from trustbench.ops import Code, CSRCode, TopKCode
from trustbench.ops.codes import entry_rows
from trustbench.sae.config import SAEConfig
from trustbench.sae.init import random_directions
from trustbench.sae.jumprelu import jump

WEIGHTS_FILE = "sae.safetensors"
CONFIG_FILE = "config.json"
FORMAT = "trustbench-sae-1"


class SAE(nn.Module):
    """A sparse autoencoder.

        pre = (s x - b_dec) W_encᵀ + b_enc      acts = σ(pre)      x_hat = (acts W_dec + b_dec) / s

    with s the input scale (1 unless the config normalises).

    Parameters
    ----------
    cfg : SAEConfig
    dtype : torch.dtype
        Of the parameters: fp32 (default), bf16, or fp64 (which runs the reference ops).

    Attributes
    ----------
    W_enc, W_dec : Parameter [F, d]
    b_enc : Parameter [F]
    b_dec : Parameter [d]
    log_threshold : Parameter [F], only for "jumprelu"
    input_scale : buffer, scalar fp32
    threshold : buffer, scalar fp32, "batchtopk": what replaces the batch at inference; NaN until set
    matmul_dtype : torch.dtype or None
        torch.bfloat16 rounds the encoder's matmul operands to bf16.
    """

    input_scale: Tensor
    threshold: Tensor

    def __init__(self, cfg: SAEConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if cfg.d_in < 1:
            raise bad("d_in", cfg.d_in, "an integer >= 1")
        self.cfg = cfg
        self.matmul_dtype: torch.dtype | None = None
        W_dec = random_directions(cfg.d_sae, cfg.d_in, cfg.seed)
        W_enc = W_dec.clone()
        if not cfg.tied_init:
            W_enc = random_directions(cfg.d_sae, cfg.d_in, cfg.seed + 1)
        self.W_enc = nn.Parameter(W_enc.to(dtype))
        self.W_dec = nn.Parameter(W_dec.to(dtype))
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in, dtype=dtype))
        if cfg.activation == "jumprelu":
            start = torch.full((cfg.d_sae,), math.log(cfg.jumprelu_threshold), dtype=dtype)
            self.log_threshold = nn.Parameter(start)
        self.register_buffer("input_scale", torch.tensor(1.0))
        self.register_buffer("threshold", torch.tensor(math.nan))

    # ---------------------------------------------------------------- the two halves

    def scaled(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """x [..., d] as [N, d] in `dtype` (None: the parameters'), times the input scale."""
        if x.ndim < 1 or x.shape[-1] != self.cfg.d_in:
            raise bad("x.shape", list(x.shape), f"[..., d_in={self.cfg.d_in}]")
        if not x.is_floating_point():
            raise bad("x.dtype", x.dtype, "a floating-point dtype")
        x = x.reshape(-1, self.cfg.d_in).to(dtype or self.W_enc.dtype)
        return x if self.cfg.normalize == "none" else x * self.input_scale.to(x.dtype)

    def encode_scaled(self, x: Tensor) -> Code:
        """The code of activations that are scaled already, [N, d], and have b_dec still in."""
        x = x - self.b_dec
        arguments = (x, self.W_enc, self.b_enc)
        cfg = self.cfg
        matmul: dict[str, Any] = {"matmul_dtype": self.matmul_dtype}
        if cfg.activation == "topk":
            return ops.encode_topk(*arguments, cfg.k, **matmul)
        if cfg.activation == "relu":
            return ops.encode_relu(*arguments, **matmul)
        if cfg.activation == "jumprelu":
            # The straight-through gradient also reaches what lies just below the threshold.
            theta = self.log_threshold.exp()
            low = theta - cfg.bandwidth / 2 if self.training else theta
            code = ops.encode_relu(*arguments, low.detach(), **matmul)
            kept = jump(code.values, theta[code.indices.long()], cfg.bandwidth)
            return code._replace(values=kept)
        if self.training:
            return ops.encode_batchtopk(*arguments, cfg.k, **matmul)
        if torch.isnan(self.threshold):
            raise InputError(
                "threshold=nan: a BatchTopK SAE in eval mode needs the threshold that training sets"
            )
        floor = self.threshold.to(x.dtype).expand(cfg.d_sae)
        return ops.encode_relu(*arguments, floor, **matmul)

    def decode_scaled(self, code: Code) -> Tensor:
        """The reconstruction [N, d] in scaled space, b_dec included."""
        return ops.decode(code.values, code.indices, self.W_dec, code.row_offsets) + self.b_dec

    def reconstruct_scaled(self, code: Code, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x_hat - x [N, d], its squared norms [N]) in scaled space, for x [N, d]."""
        return ops.reconstruct(code.values, code.indices, self.W_dec, self.b_dec, x, code.row_offsets)

    # ---------------------------------------------------------------- what users call

    def encode_sparse(self, x: Tensor) -> Code:
        """The code of x [..., d]: TopKCode for "topk", CSRCode otherwise, over N = all tokens."""
        return self.encode_scaled(self.scaled(x))

    def encode(self, x: Tensor) -> Tensor:
        """Dense activations [..., F], as peers have them. Large: prefer `encode_sparse`."""
        return self.dense(self.encode_sparse(x)).view(*x.shape[:-1], self.cfg.d_sae)

    def dense(self, code: Code) -> Tensor:
        """A code as a dense [N, F] tensor."""
        if isinstance(code, TopKCode):
            out = code.values.new_zeros(len(code.values), self.cfg.d_sae)
            return out.scatter(1, code.indices.long(), code.values)
        out = code.values.new_zeros(len(code.row_offsets) - 1, self.cfg.d_sae)
        rows = entry_rows(code.indices, code.row_offsets)
        return out.index_put((rows, code.indices.long()), code.values)

    def decode(self, acts: Tensor | TopKCode | CSRCode) -> Tensor:
        """Reconstruction from dense activations [..., F] or from a code (then [N, d])."""
        if isinstance(acts, TopKCode | CSRCode):
            x_hat = self.decode_scaled(acts)
        else:
            if acts.shape[-1] != self.cfg.d_sae:
                raise bad("acts.shape", list(acts.shape), f"[..., d_sae={self.cfg.d_sae}]")
            x_hat = acts.to(self.W_dec.dtype) @ self.W_dec + self.b_dec
        return x_hat if self.cfg.normalize == "none" else x_hat / self.input_scale.to(x_hat.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x_hat, of the shape and dtype of x."""
        return self.decode(self.encode_sparse(x)).view(x.shape).to(x.dtype)

    def extra_repr(self) -> str:
        cfg = self.cfg
        size = f", k={cfg.k}" if cfg.activation in ("topk", "batchtopk") else ""
        return f"{cfg.activation}, d_in={cfg.d_in}, d_sae={cfg.d_sae}{size}"

    # ---------------------------------------------------------------- the decoder's norm

    @torch.no_grad()
    def normalize_decoder_(self) -> None:
        """Divide every decoder row by its norm (for training with an optimiser of your own)."""
        norm = self.W_dec.norm(dim=1, keepdim=True)
        self.W_dec.div_(torch.where(norm > 0, norm, torch.ones_like(norm)))

    @torch.no_grad()
    def project_decoder_grad_(self) -> None:
        """Remove the part of W_dec's gradient along each (unit) row, before an optimiser step."""
        if self.W_dec.grad is not None:
            along = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True)
            self.W_dec.grad.sub_(along * self.W_dec)

    @torch.no_grad()
    def fold(self) -> SAE:
        """An equal SAE that takes activations as they are: the input scale is in the weights."""
        folded = SAE(self.cfg.replace(normalize="none"), self.W_enc.dtype)
        folded.load_state_dict(self.state_dict())
        folded.matmul_dtype = self.matmul_dtype
        folded.train(self.training)
        scale = self.input_scale.to(self.W_enc.dtype)
        folded.W_enc.mul_(scale)
        folded.W_dec.div_(scale)
        folded.b_dec.div_(scale)
        folded.input_scale.fill_(1.0)
        return folded

    # ---------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `path`/sae.safetensors and `path`/config.json."""
        tensors = {name: tensor.cpu() for name, tensor in self.state_dict().items()}
        files.save_tensors(Path(path) / WEIGHTS_FILE, tensors)
        files.atomic_write_json(Path(path) / CONFIG_FILE, {"format": FORMAT, **self.cfg.to_dict()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SAE:
        """Read what `save` wrote, in eval mode; CheckpointError names a bad file or tensor."""
        fields = files.read_json(Path(path) / CONFIG_FILE)
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            raise CheckpointError(f"{path}/{CONFIG_FILE}: expected format {FORMAT!r}")
        try:
            cfg = SAEConfig.from_dict(fields)
        except InputError as error:
            raise CheckpointError(f"{path}/{CONFIG_FILE}: {error}") from error
        tensors = files.load_tensors(Path(path) / WEIGHTS_FILE)
        dtype = tensors["W_enc"].dtype if "W_enc" in tensors else torch.float32
        sae = cls(cfg, dtype)
        wanted = sae.state_dict()
        if tensors.keys() != wanted.keys():
            odd = sorted(tensors.keys() ^ wanted.keys())
            raise CheckpointError(f"{path}/{WEIGHTS_FILE}: missing or unexpected tensors {odd}")
        for name, tensor in tensors.items():
            if tensor.shape != wanted[name].shape:
                raise CheckpointError(
                    f"{path}/{WEIGHTS_FILE}: {name} has shape {list(tensor.shape)},"
                    f" expected {list(wanted[name].shape)}"
                )
        sae.load_state_dict(tensors)
        return sae.eval()


def load_saes(directory: str | os.PathLike[str]) -> dict[str, SAE]:
    """The SAEs saved in the folders of a directory, by folder name (hook point), layers in order."""
    found = [path.name for path in Path(directory).iterdir() if path.is_dir()]
    found.sort(key=lambda name: [(len(part), part) for part in name.split(".")])
    return {name: SAE.load(Path(directory) / name) for name in found}
