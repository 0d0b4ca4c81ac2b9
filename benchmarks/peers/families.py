"""Training Gated, ReLU and Matryoshka SAEs and transcoders, by us and by the peers that have them.

Every peer runs its own classes, in the order of operations of its own trainer (the file named in
its docstring), with constant learning rates and coefficients: neither is warmed up. Coefficients,
prefixes and their weights are the same for all; each has its own start and its own AuxK.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.base import version_of
from benchmarks.peers.steps import Step

SMALL = {"N": 4, "d": 8, "F": 16, "k": 2, "prefixes": [4, 8]}


@dataclass
class Family(Step):
    """`family`: "gated", "relu", "matryoshka", or "transcoder" with TopK.

    A row of data is what is read and, for a transcoder, what is reconstructed behind it.
    """

    family: str = "gated"
    l1: float = 0.0  # coefficient of the penalty
    prefixes: Sequence[int] = ()  # widths, without that of the whole dictionary
    skip: bool = False  # of a transcoder

    def acts(self, x: Tensor) -> Tensor:
        """Dense activations [N, F]; BatchTopK chooses in the batch, as it does in training."""
        raise NotImplementedError

    def decode(self, acts: Tensor, x: Tensor) -> Tensor:
        """What acts reconstruct [N, d]."""
        raise NotImplementedError

    def prepare(self) -> Tensor:
        return torch.randn(self.N, self.d * (2 if self.family == "transcoder" else 1))

    def pair(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What is read and what is reconstructed, [N, d] each."""
        return rows[:, : self.d].contiguous(), rows[:, -self.d :].contiguous()

    @torch.no_grad()
    def test(self, file: str) -> dict[str, Any]:
        """fvu (for a Matryoshka SAE of each prefix, the last of them all), L0, and dead features."""
        widths = [*self.prefixes, self.F]
        errors, fired = [0.0] * len(widths), torch.zeros(self.F)
        rows = self._rows(file)
        for part in rows.split(self.N):
            x, y = self.pair(part)
            acts = self.acts(x)
            fired += (acts > 0).sum(0)
            for i, width in enumerate(widths):
                first = torch.cat([acts[:, :width], torch.zeros_like(acts[:, width:])], 1)
                errors[i] += (y - self.decode(first, x)).double().square().sum().item()
        _, y = self.pair(rows)
        total = (y - y.mean(0)).double().square().sum().item()
        fvu = [error / total for error in errors]
        of_prefixes = {"prefix_fvu": fvu} if self.prefixes else {}
        l0, never = fired.sum().item() / len(rows), (fired == 0).float().mean().item()
        return {"fvu": fvu[-1], "l0": l0, "never_active": never, **of_prefixes}


class Trustbench(Family):
    """Our step, as `trustbench train` picks it."""

    def build(self) -> None:
        from trustbench.sae import SAE, SAEConfig
        from trustbench.steps import pick

        self.version = version_of("trustbench")
        of: dict[str, dict[str, Any]] = {
            "gated": {"l1_coefficient": self.l1},
            "relu": {"l1_coefficient": self.l1},
            "matryoshka": {"k": self.k, "prefixes": list(self.prefixes)},
            "transcoder": {"activation": "topk", "k": self.k, "d_out": self.d, "skip": self.skip},
        }
        fields = {"activation": self.family} | of[self.family]
        self.sae = SAE(SAEConfig(d_in=self.d, d_sae=self.F, **fields))
        self.trainer = pick(self.sae, dead_after_tokens=self.dead_after, matmul_dtype="fp32")

    def step(self, x: Tensor) -> None:
        x, y = self.pair(x)
        if self.trainer.steps == 0:
            from trustbench.sae.init import initialise

            initialise(self.sae, x, target=y)
            self.trainer.refresh_copies()
        self.trainer.step(x, self.lr, target=y if self.family == "transcoder" else None)

    def acts(self, x: Tensor) -> Tensor:
        return self.sae.encode(x)

    def decode(self, acts: Tensor, x: Tensor) -> Tensor:
        return self.sae.decode(acts, x)


class DictionaryLearning(Family):
    """dictionary_learning/trainers/gdm.py and matryoshka_batch_top_k.py."""

    def build(self) -> None:
        from dictionary_learning.trainers.gdm import GatedSAETrainer
        from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

        self.version = version_of("dictionary-learning")
        shared: dict[str, Any] = {
            "steps": max(self.steps, 10), "activation_dim": self.d, "dict_size": self.F, "layer": 0,
            "lm_name": "none", "lr": self.lr, "warmup_steps": 0, "seed": 0, "device": self.device,
        }  # fmt: skip
        if self.family == "gated":
            self.trainer: Any = GatedSAETrainer(**shared, l1_penalty=self.l1, sparsity_warmup_steps=0)
        else:
            widths = pairwise([0, *self.prefixes, self.F])
            self.trainer = MatryoshkaBatchTopKTrainer(
                **shared, k=self.k, group_fractions=[(b - a) / self.F for a, b in widths]
            )
            self.trainer.dead_feature_threshold = self.dead_after
        self.done = 0

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.done, x)
        self.done += 1

    def acts(self, x: Tensor) -> Tensor:
        more = {} if self.family == "gated" else {"use_threshold": False}
        return self.trainer.ae.encode(x, **more)

    def decode(self, acts: Tensor, x: Tensor) -> Tensor:
        return self.trainer.ae.decode(acts)


class SaeLens(Family):
    """SAETrainer._train_step of sae_lens/training/sae_trainer.py, with its training SAEs."""

    def build(self) -> None:
        import sae_lens
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        self.version = version_of("sae-lens")
        torch.manual_seed(0)
        shared: dict[str, Any] = {"d_in": self.d, "d_sae": self.F, "device": self.device}
        if self.family == "gated":
            gated = sae_lens.GatedTrainingSAEConfig(**shared, l1_coefficient=self.l1)
            self.sae: Any = sae_lens.GatedTrainingSAE(gated)
        else:
            nested = sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(
                **shared, k=self.k, matryoshka_widths=[*self.prefixes, self.F]
            )
            self.sae = sae_lens.MatryoshkaBatchTopKTrainingSAE(nested)
        config = SAETrainerConfig(
            total_training_samples=self.steps * self.N, train_batch_size_samples=self.N,
            lr=self.lr, lr_end=self.lr / 10, device=self.device, autocast=False,
            dead_feature_window=max(1, self.dead_after // self.N),
        )  # fmt: skip
        self.trainer = SAETrainer(config, self.sae, iter(()))

    def step(self, x: Tensor) -> None:
        self.trainer._train_step(self.sae, x)
        self.trainer.n_training_steps += 1

    def acts(self, x: Tensor) -> Tensor:
        acts = self.sae.encode(x)
        return acts.to_dense() if acts.is_sparse else acts

    def decode(self, acts: Tensor, x: Tensor) -> Tensor:
        return self.sae.decode(acts)


class Sparsify(Family):
    """sparsify/trainer.py with `transcode`: its decoder starts at 0 and is not normalised; Adam."""

    def build(self) -> None:
        from sparsify import SparseCoder, SparseCoderConfig

        self.version = version_of("eai-sparsify")
        torch.manual_seed(0)
        config = SparseCoderConfig(
            num_latents=self.F, k=self.k, transcode=True, skip_connection=self.skip
        )
        self.sae = SparseCoder(self.d, config, device=self.device, dtype=torch.float32)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=self.lr)
        self.started = False
        self.inactive = torch.zeros(self.F, dtype=torch.long)

    def step(self, x: Tensor) -> None:
        x, y = self.pair(x)
        if not self.started:
            self.sae.encoder.bias.data = -x.mean(0) @ self.sae.encoder.weight.data.T
            self.sae.b_dec.data = y.mean(0)
            self.started = True
        out = self.sae(x, y=y, dead_mask=self.inactive > self.dead_after)
        self.inactive += len(x)
        self.inactive[out.latent_indices.flatten()] = 0
        (out.fvu + out.auxk_loss / 32).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def acts(self, x: Tensor) -> Tensor:
        code = self.sae.encode(x)
        acts = torch.zeros(len(x), self.F)
        return acts.scatter(1, code.top_indices, code.top_acts)

    def decode(self, acts: Tensor, x: Tensor) -> Tensor:
        y = acts @ self.sae.W_dec + self.sae.b_dec
        return y if self.sae.W_skip is None else y + x @ self.sae.W_skip.mT


CONTENDERS: dict[str, Callable[..., Family]] = {
    "trustbench": Trustbench,
    "dictionary_learning": DictionaryLearning,
    "SAELens": SaeLens,
    "sparsify": Sparsify,
}
