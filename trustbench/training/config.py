"""TrainConfig: one training run, checked before any work is done."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from trustbench.activations import ActivationCache
from trustbench.activations.config import CAPTURED, Dtype, TextConfig
from trustbench.buffer import Spill
from trustbench.errors import InputError, bad
from trustbench.sae.config import SAEConfig, check_fields

Decay = Literal["constant", "linear", "cosine"]
BiasInit = Literal["geometric_median", "mean", "zero"]
BufferDtype = Literal["auto", "fp32", "bf16", "fp16", "fp8"]
StateDtype = Literal["fp32", "bf16"]
Parallel = Literal["layers", "tokens"]
Sink = Literal["tensorboard", "wandb", "trackio"]

# What may differ between a run and its continuation: where and how it runs, not what it computes
# (another number of threads may round the model's own forward differently).
MAY_CHANGE = frozenset(
    {"out", "checkpoint_minutes", "checkpoint_tokens", "sinks", "threads", "spill_dir", "parallel"}
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TextConfig):
    """One training run: SAEs on all chosen layers of a model, together.

    Parameters
    ----------
    model, data, layers, site, ..., prepend_bos
        What is read, and by which model: see TextConfig.
    out
        The run's directory. If it holds this run already, the run continues where it stopped; only
        checkpoint_minutes, checkpoint_tokens, sinks, threads, spill_dir, parallel and the number of
        processes may differ then. It may be moved.
    sae
        The SAEs; d_in is taken from the model when it is 0.
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

    out: str
    tokens: int
    sae: SAEConfig
    activations: str = ""
    batch_size: int = 2048
    buffer_tokens: int = 0
    buffer_dtype: BufferDtype = "auto"
    spill_host_gb: float = 0.0
    spill_disk_gb: float = 0.0
    spill_dir: str = ""
    lr: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    warmup_fraction: float = 0.01
    decay: Decay = "linear"
    decay_fraction: float = 0.2
    l1_warmup_fraction: float = 0.05
    clip_norm: float = 0.0
    dead_after_tokens: int = 10_000_000
    b_dec_init: BiasInit = "geometric_median"
    matmul_dtype: Dtype = "auto"
    state_dtype: StateDtype = "fp32"
    log_every: int = 10
    snapshots: list[int] = field(default_factory=list)
    checkpoint_minutes: float = 10.0
    checkpoint_tokens: int = 0
    sinks: list[Sink] = field(default_factory=list)
    threads: int = 0
    parallel: Parallel = "layers"
    seed: int = 0

    def __post_init__(self) -> None:
        self.check_kinds(
            {
                "list[int]": (list, "a list of token counts"),
                "list[Sink]": (list, "a list of names"),
                "SAEConfig": (SAEConfig, "an SAEConfig"),
            }
        )
        for name in ("out",) if self.activations else ("model", "data", "out"):
            if not getattr(self, name):
                raise bad(name, getattr(self, name), "a non-empty string (or activations)")
        self.check_text()
        self.check_least(
            {
                "tokens": 1, "batch_size": 1, "buffer_tokens": 0, "dead_after_tokens": 1,
                "log_every": 1, "checkpoint_tokens": 0, "threads": 0, "seed": 0,
            }
        )  # fmt: skip
        for name in ("lr", "clip_norm", "checkpoint_minutes", "spill_host_gb", "spill_disk_gb"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise bad(name, getattr(self, name), "a finite number >= 0")
        # Adam divides a feature that never fired by sqrt(0) + eps.
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise bad("eps", self.eps, "a finite number > 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise bad(name, getattr(self, name), "a number in [0, 1)")
        for name in ("warmup_fraction", "decay_fraction", "l1_warmup_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise bad(name, getattr(self, name), "a number in [0, 1]")
        self.check_choices(
            {
                "decay": Decay, "b_dec_init": BiasInit, "matmul_dtype": Dtype,
                "state_dtype": StateDtype, "buffer_dtype": BufferDtype,
                "parallel": Parallel,
            }
        )  # fmt: skip
        for sink in self.sinks:
            if sink not in get_args(Sink):
                raise bad("sinks", sink, f"some of {', '.join(get_args(Sink))}")
        if any(type(s) is not int or not 0 < s <= self.tokens for s in self.snapshots):
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
        return dataclasses.replace(self, **{name: settings[name] for name in CAPTURED})

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TrainConfig:
        """The reverse of `to_dict`; an unknown field raises InputError with the nearest name."""
        check_fields(cls, fields)
        required = [f.name for f in dataclasses.fields(cls) if f.name not in fields]
        needed = {"out", "tokens", "sae"} | (
            set() if fields.get("activations") else {"model", "data"}
        )
        required = [n for n in required if n in needed]
        if required:
            raise InputError(f"TrainConfig: missing {', '.join(required)}")
        sae = fields["sae"]
        if isinstance(sae, dict):
            sae = SAEConfig.from_dict(sae)
        return cls(**{**fields, "sae": sae})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> TrainConfig:
        """Read a YAML or JSON file."""
        import yaml

        class Loader(yaml.SafeLoader):
            """PyYAML takes 2e-4, without a dot, for a string; YAML 1.2 and people do not."""

        number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
        Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
        try:
            text = Path(path).read_text(encoding="utf-8")
            is_json = Path(path).suffix == ".json"
            fields = json.loads(text) if is_json else yaml.load(text, Loader)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"config={str(path)!r}: not readable ({error})") from error
        if not isinstance(fields, dict):
            raise InputError(f"config={str(path)!r}: expected a mapping of field names to values")
        return cls.from_dict(fields)
