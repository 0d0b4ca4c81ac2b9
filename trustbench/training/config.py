"""TrainConfig: one training run, checked before any work is done."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from trustbench.activations import ActivationCache
from trustbench.activations.config import CAPTURED, ActivationsConfig
from trustbench.buffer import Spill
from trustbench.defaults import BETA1, BETA2, DEAD_AFTER_TOKENS, EPS
from trustbench.devices import BufferDtype, Dtype, StateDtype
from trustbench.errors import bad
from trustbench.fields import (
    Bounds,
    Fraction,
    NonEmptyStr,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    PositiveInt,
)
from trustbench.models.hook_points import Site
from trustbench.sae import SAEConfig
from trustbench.sae.init import BiasInit

Decay = Literal["constant", "linear", "cosine"]
Parallel = Literal["layers", "tokens"]
Beta = Annotated[float, Bounds(least=0, below=1)]
Sink = Literal["tensorboard", "wandb", "trackio"]

# What may differ between a run and its continuation: where and how it runs, not what it computes
# (another number of threads may round the model's own forward differently).
MAY_CHANGE = frozenset(
    {"out", "checkpoint_minutes", "checkpoint_tokens", "sinks", "threads", "spill_dir", "parallel"}
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ActivationsConfig):
    """One training run: SAEs on all chosen layers of a model, together.

    Parameters
    ----------
    model, data, context_length, ..., layers, site
        What is read, by which model, and where: see TextConfig and ActivationsConfig.
    out
        The run's directory. If it holds this run already, the run continues where it stopped; only
        checkpoint_minutes, checkpoint_tokens, sinks, threads, spill_dir, parallel and the number of
        processes may differ then. It may be moved.
    sae
        The SAEs; d_in is taken from the model when it is 0.
    target_site
        Train transcoders: they read each layer's `site` and reconstruct its target_site (mlp_in and
        mlp_out, say). Empty: SAEs, which reconstruct what they read.
    tokens
        Tokens to train every SAE on.
    activations
        A directory that trustbench capture wrote: train on it, without a model, as many epochs as
        `tokens` asks for. model, data and how text is read are then those of the capture.
    batch_size
        Tokens a training step.
    buffer_tokens
        Tokens that are mixed (see ActivationBuffer); 0: 16 batches.
    buffer_dtype
        fp32, bf16, fp16 or fp8 (MXFP8): how buffered activations are stored. auto: bf16 on a GPU,
        else fp32.
    spill_host_gb
        GB (1e9 bytes) of host memory for tokens that the pool has no room for, so that more are mixed
        (see ActivationBuffer); 0: none.
    spill_disk_gb
        GB of files for what host memory has no room for; 0: none.
    spill_dir
        Where these files lie: a fast local disk. Empty: out/spill. It may change, if its files move.
    lr
        Learning rate; 0: 2e-4 / sqrt(d_sae / 16384) (Gao et al. 2024, A.4).
    beta1
        Adam.
    beta2
        Adam.
    eps
        Adam.
    warmup_fraction
        Share of the run in which the learning rate rises from 0.
    decay
        constant, linear or cosine: how it falls to 0 at the end.
    decay_fraction
        Share of the run in which it falls.
    l1_warmup_fraction
        Share of the run in which the L1 (or L0) coefficient rises from 0.
    clip_norm
        Clip the gradient of an SAE to this global norm; 0: off (it costs a second sparse pass).
    dead_after_tokens
        A feature is dead when it was inactive for this many tokens.
    b_dec_init
        geometric_median, mean or zero of the first activations.
    matmul_dtype
        bf16 rounds the encoder's matmul operands; fp32 does not; auto: bf16 on a GPU, and where the
        processor has bf16 instructions. On the CPU everything else is fp32. On a GPU bf16 also means
        that decoder rows are read, and residuals kept, in bf16; weights and sums are fp32.
    state_dtype
        fp32 or bf16: Adam's moments of the matrices. bf16 (GPU only) saves 8 bytes a weight and
        costs precision: moments are rounded by chance, right in the mean.
    log_every
        Steps between two lines a layer in metrics.jsonl.
    snapshots
        Token counts at which the SAEs are also saved, to out/snapshots.
    checkpoint_minutes
        Minutes between checkpoints; 0: off.
    checkpoint_tokens
        Tokens between checkpoints; 0: off.
    sinks
        Where metrics go besides metrics.jsonl: tensorboard, wandb, trackio.
    threads
        CPU threads of a process; 0: as torch chooses.
    parallel
        What several processes (torchrun) divide: layers, each trains some; or tokens, all train every
        SAE, each on some tokens of every batch. The weights are those of one process: the same bits
        with layers, up to the order of a few sums with tokens. `out` is one directory for them all.
    seed
        Of the buffer's order (the SAEs have their own).
    """

    model: str = ""  # and data: they may be those of the capture
    data: str = ""
    out: NonEmptyStr
    tokens: PositiveInt
    sae: SAEConfig
    target_site: Annotated[str, OneOf(("", *get_args(Site)))] = ""
    activations: str = ""
    batch_size: PositiveInt = 2048
    buffer_tokens: NonNegativeInt = 0
    buffer_dtype: BufferDtype = "auto"
    spill_host_gb: NonNegativeFloat = 0.0
    spill_disk_gb: NonNegativeFloat = 0.0
    spill_dir: str = ""
    lr: NonNegativeFloat = 0.0
    beta1: Beta = BETA1
    beta2: Beta = BETA2
    eps: PositiveFloat = EPS  # Adam divides a feature that never fired by sqrt(0) + eps
    warmup_fraction: Fraction = 0.01
    decay: Decay = "linear"
    decay_fraction: Fraction = 0.2
    l1_warmup_fraction: Fraction = 0.05
    clip_norm: NonNegativeFloat = 0.0
    dead_after_tokens: PositiveInt = DEAD_AFTER_TOKENS
    b_dec_init: BiasInit = "geometric_median"
    matmul_dtype: Dtype = "auto"
    state_dtype: StateDtype = "fp32"
    log_every: PositiveInt = 10
    snapshots: list[int] = field(default_factory=list)
    checkpoint_minutes: NonNegativeFloat = 10.0
    checkpoint_tokens: NonNegativeInt = 0
    sinks: list[Sink] = field(default_factory=list)
    threads: NonNegativeInt = 0
    parallel: Parallel = "layers"
    seed: NonNegativeInt = 0

    def check(self) -> None:
        """No text and no activations, snapshots after the end, a buffer too small: InputError."""
        for name in ("model", "data"):
            if not (self.activations or getattr(self, name)):
                raise bad(name, getattr(self, name), "a non-empty string (or activations)")
        if self.sae.transcoder and not self.target_site:
            raise bad("sae.d_out", self.sae.d_out, "0, or a target_site to reconstruct")
        if self.sae.skip and not self.target_site:
            raise bad("sae.skip", True, "false, or a target_site to reconstruct")
        if any(not 0 < s <= self.tokens for s in self.snapshots):
            raise bad("snapshots", self.snapshots, f"token counts in [1, tokens={self.tokens}]")
        if self.buffer_tokens and self.buffer_tokens < self.smallest_buffer:
            raise bad(
                "buffer_tokens",
                self.buffer_tokens,
                f"0 or at least batch_size + model_rows * context_length = {self.smallest_buffer}",
            )
        # A segment, at most an eighth of the pool, stands between the pool and what it takes at once.
        largest = max(self.batch_size, self.model_rows * self.context_length)
        if self.spill and self.buffer_capacity * 7 < largest * 8:
            raise bad(
                "buffer_tokens", self.buffer_capacity, f"at least {largest * 8 // 7 + 1} to spill"
            )

    @property
    def smallest_buffer(self) -> int:
        """A buffer must take one forward while it holds one batch."""
        return self.batch_size + self.model_rows * self.context_length

    @property
    def buffer_capacity(self) -> int:
        """Tokens of the buffer."""
        return self.buffer_tokens or max(16 * self.batch_size, self.smallest_buffer)

    @property
    def spill(self) -> Spill:
        """Bounds of the tiers below the buffer's pool."""
        directory = self.spill_dir or os.path.join(self.out, "spill")
        host, disk = round(1e9 * self.spill_host_gb), round(1e9 * self.spill_disk_gb)
        return Spill(host_bytes=host, disk_bytes=disk, directory=directory)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate."""
        return self.lr or 2e-4 / math.sqrt(self.sae.d_sae / 2**14)

    def completed(self) -> TrainConfig:
        """With `activations`: model, data and how text was read, from the cache.

        Raises
        ------
        InputError
            When this config says otherwise.
        """
        if not self.activations:
            return self
        settings = ActivationCache(self.activations).settings
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name in CAPTURED:
            mine = getattr(self, name)
            if mine not in (defaults[name], settings[name]):
                raise bad(name, mine, f"{settings[name]!r}, as {self.activations} was captured")
        return self.replace(**{name: settings[name] for name in CAPTURED})

    @classmethod
    def missing(cls, fields: Mapping[str, Any]) -> list[str]:
        """Also model and data, where there are no activations."""
        needed = [] if fields.get("activations") else ["model", "data"]
        return [name for name in needed if name not in fields] + super().missing(fields)
