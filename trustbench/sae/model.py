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
from trustbench.sae.families import family
from trustbench.sae.families.base import How
from trustbench.sae.init import random_directions
from trustbench.sae.wiring import Wiring

WEIGHTS_FILE = "sae.safetensors"
CONFIG_FILE = "config.json"
FORMAT = "trustbench-sae-1"


class SAE(nn.Module):
    """A sparse autoencoder, or a transcoder.

        pre = (s x - b_dec) W_encᵀ + b_enc      acts = σ(pre)      x_hat = (acts W_dec + b_dec) / s

    with s the input scale (1 unless the config normalises). A transcoder has a target y of its own
    scale t, takes x as it is, and may skip (σ is the family's; see trustbench.sae.families):

        pre = s x W_encᵀ + b_enc                y_hat = (acts W_dec + b_dec + s x W_skipᵀ) / t

    Parameters
    ----------
    cfg : SAEConfig
    dtype : torch.dtype
        Of the parameters: fp32 (default), bf16, or fp64 (which runs the reference ops).

    Attributes
    ----------
    W_enc : Parameter [F, d_in]
    W_dec : Parameter [F, d_out]
    b_enc : Parameter [F]
    b_dec : Parameter [d_out]
    W_skip : Parameter [d_out, d_in] or None
    input_scale, output_scale : buffers, scalars fp32; the second only for a transcoder
    threshold : buffer, scalar fp32, "batchtopk": what replaces the batch at inference; NaN until set
    matmul_dtype : torch.dtype or None
        torch.bfloat16 rounds the encoder's matmul operands to bf16.
    wiring : Wiring or None
        The hook points it was trained on, where training made it.

    Examples
    --------
    >>> sae = tb.SAE(tb.SAEConfig(d_in=16, d_sae=64, k=4))
    >>> x = torch.randn(8, 16)
    >>> sae(x).shape, sae.encode(x).shape
    (torch.Size([8, 16]), torch.Size([8, 64]))
    >>> sae.encode_sparse(x).indices.shape
    torch.Size([8, 4])
    """

    input_scale: Tensor
    output_scale: Tensor
    threshold: Tensor
    W_skip: nn.Parameter | None

    def __init__(self, cfg: SAEConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if cfg.d_in < 1:
            raise bad("d_in", cfg.d_in, "an integer >= 1")
        if cfg.skip and not cfg.transcoder:
            raise bad("skip", True, "false, but for a transcoder (d_out > 0)")
        self.cfg, self.family = cfg, family(cfg.activation)
        self.matmul_dtype: torch.dtype | None = None
        self.wiring: Wiring | None = None
        W_dec = random_directions(cfg.d_sae, cfg.width_out, cfg.seed)
        W_enc = W_dec.clone()
        if not cfg.tied_init or cfg.transcoder:
            W_enc = random_directions(cfg.d_sae, cfg.d_in, cfg.seed + 1)
        self.W_enc = nn.Parameter(W_enc.to(dtype))
        self.W_dec = nn.Parameter(W_dec.to(dtype))
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(cfg.width_out, dtype=dtype))
        for name, start in self.family.parameters(cfg).items():
            self.register_parameter(name, nn.Parameter(start.to(dtype)))
        skip = nn.Parameter(torch.zeros(cfg.width_out, cfg.d_in, dtype=dtype)) if cfg.skip else None
        self.register_parameter("W_skip", skip)
        self.register_buffer("input_scale", torch.tensor(1.0))
        if cfg.transcoder:
            self.register_buffer("output_scale", torch.tensor(1.0))
        self.register_buffer("threshold", torch.tensor(math.nan))
        for name, buffer in self.family.buffers(cfg).items():
            self.register_buffer(name, buffer)

    # ---------------------------------------------------------------- the two halves

    @property
    def master_W_dec(self) -> Tensor:
        """W_dec as it is updated: a step may read copies of it."""
        return self.W_dec

    def scaled(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """x [..., d_in] as [N, d_in] in `dtype` (None: the parameters'), times the input scale."""
        return self._flat("x", "d_in", x, self.input_scale, dtype)

    def scaled_target(self, y: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The same of what is reconstructed, [..., d_out]; of x itself but for a transcoder."""
        if not self.cfg.transcoder:
            return self.scaled(y, dtype)
        return self._flat("target", "d_out", y, self.output_scale, dtype)

    def _flat(
        self, name: str, field: str, x: Tensor, scale: Tensor, dtype: torch.dtype | None
    ) -> Tensor:
        width = getattr(self.cfg, field)
        if x.ndim < 1 or x.shape[-1] != width:
            raise bad(f"{name}.shape", list(x.shape), f"[..., {field}={width}]")
        if not x.is_floating_point():
            raise bad(f"{name}.dtype", x.dtype, "a floating-point dtype")
        x = x.reshape(-1, width).to(dtype or self.W_enc.dtype)
        return x if self.cfg.normalize == "none" else x * scale.to(x.dtype)

    def centred(self, x: Tensor) -> Tensor:
        """What the encoder multiplies, of scaled x [N, d_in]."""
        return x if self.cfg.transcoder else x - self.b_dec

    def skipped(self, x: Tensor) -> Any:
        """What scaled x [N, d_in] adds to the reconstruction beside the code; 0.0: nothing."""
        return 0.0 if self.W_skip is None else x @ self.W_skip.T

    def encode_scaled(self, x: Tensor) -> Code:
        """The code of activations that are scaled already, [N, d_in], and have b_dec still in."""
        if self.family.infer is not None and not self.training:
            return self.family.infer(self, self.centred(x))
        return self.family.encode(self, self.centred(x), How())

    def decode_scaled(self, code: Code) -> Tensor:
        """The reconstruction [N, d_out] in scaled space, b_dec included, the skip not."""
        return ops.decode(code.values, code.indices, self.W_dec, code.row_offsets) + self.b_dec

    # ---------------------------------------------------------------- what users call

    def encode_sparse(self, x: Tensor) -> Code:
        """The code of x [..., d_in]: TopKCode for "topk", CSRCode otherwise, over N = all tokens."""
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

    def decode(self, acts: Tensor | TopKCode | CSRCode, x: Tensor | None = None) -> Tensor:
        """Reconstruction from dense activations [..., F] or from a code (then [N, d_out]).

        x [..., d_in], the input, is wanted by a transcoder with a skip.
        """
        if isinstance(acts, TopKCode | CSRCode):
            x_hat = self.decode_scaled(acts)
        else:
            if acts.shape[-1] != self.cfg.d_sae:
                raise bad("acts.shape", list(acts.shape), f"[..., d_sae={self.cfg.d_sae}]")
            x_hat = acts.to(self.W_dec.dtype) @ self.W_dec + self.b_dec
        if self.W_skip is not None:
            if x is None:
                raise bad("x", None, "the input: this transcoder has a skip")
            x_hat = x_hat + self.skipped(self.scaled(x)).view_as(x_hat)
        scale = self.output_scale if self.cfg.transcoder else self.input_scale
        return x_hat if self.cfg.normalize == "none" else x_hat / scale.to(x_hat.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x_hat (a transcoder's y_hat) [..., d_out], of the dtype of x [..., d_in]."""
        x_hat = self.decode(self.encode_sparse(x), x)
        return x_hat.view(*x.shape[:-1], self.cfg.width_out).to(x.dtype)

    def extra_repr(self) -> str:
        cfg = self.cfg
        size = f", k={cfg.k}" if "k" in self.family.uses else ""
        out = f", d_out={cfg.d_out}" if cfg.transcoder else ""
        return f"{cfg.activation}, d_in={cfg.d_in}{out}, d_sae={cfg.d_sae}{size}"

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
        folded.wiring = self.wiring
        scale = self.input_scale.to(self.W_enc.dtype)
        out = self.output_scale.to(scale.dtype) if self.cfg.transcoder else scale
        folded.W_enc.mul_(scale)
        folded.W_dec.div_(out)
        folded.b_dec.div_(out)
        if folded.W_skip is not None:
            folded.W_skip.mul_(scale / out)
        folded.input_scale.fill_(1.0)
        if self.cfg.transcoder:
            folded.output_scale.fill_(1.0)
        return folded

    # ---------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `path`/sae.safetensors and `path`/config.json."""
        tensors = {name: tensor.cpu() for name, tensor in self.state_dict().items()}
        files.save_tensors(Path(path) / WEIGHTS_FILE, tensors)
        wiring = {"wiring": self.wiring._asdict()} if self.wiring else {}
        fields = {"format": FORMAT, **wiring, **self.cfg.to_dict()}
        files.atomic_write_json(Path(path) / CONFIG_FILE, fields)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SAE:
        """Read what `save` wrote, in eval mode; CheckpointError names a bad file or tensor."""
        fields = files.read_json(Path(path) / CONFIG_FILE)
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            raise CheckpointError(f"{path}/{CONFIG_FILE}: expected format {FORMAT!r}")
        wired = fields.pop("wiring", None)
        try:
            wiring = None if wired is None else Wiring(**wired)
            cfg = SAEConfig.from_dict(fields)
        except (InputError, TypeError) as error:
            raise CheckpointError(f"{path}/{CONFIG_FILE}: {error}") from error
        tensors = files.load_tensors(Path(path) / WEIGHTS_FILE)
        dtype = tensors["W_enc"].dtype if "W_enc" in tensors else torch.float32
        sae = cls(cfg, dtype)
        sae.wiring = wiring
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
