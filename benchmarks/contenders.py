"""One SAE training step, by us and by each peer, behind one small interface.

Every peer runs its own classes, in the order of operations of its own trainer (the file named in its
docstring). `dead_after` switches AuxK on, each contender with its own form of it, for features
inactive for so many tokens; 0 leaves it off (no feature is dead in a speed run). worker.py imports
this file in whatever environment has the peer, so it imports nothing before it is asked to.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


class Contender:
    """`step(x)` is one full Adam step on x [N, d]; `code(x)` is for measuring quality."""

    version = torch.__version__

    def __init__(
        self, d: int, F: int, k: int, lr: float, steps: int, bf16: bool, dead_after: int = 0
    ) -> None:
        self.d, self.F, self.k, self.lr, self.steps, self.bf16 = d, F, k, lr, steps, bf16
        self.dead_after = dead_after
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def step(self, x: Tensor) -> None:
        raise NotImplementedError

    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x_hat [N, d], how often each feature is active [F])."""
        raise NotImplementedError

    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else contextlib.nullcontext()


def _version(name: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(name)


class Trustbench(Contender):
    """The trainer's fused step; bf16: the encoder's matmul operands."""

    def build(self) -> None:
        from trustbench.sae import SAE, SAEConfig
        from trustbench.train.step import LayerTrainer

        self.version = _version("trustbench")
        auxk = -1 if self.dead_after else 0
        sae = SAE(SAEConfig(d_in=self.d, d_sae=self.F, k=self.k, auxk=auxk))
        sae.matmul_dtype = torch.bfloat16 if self.bf16 else None
        self.trainer = LayerTrainer(sae, dead_after_tokens=self.dead_after or 10_000_000)

    def step(self, x: Tensor) -> None:
        if self.trainer.steps == 0:
            from trustbench.sae.init import initialise

            initialise(self.trainer.sae, x)
        self.trainer.step(x, self.lr)

    @torch.no_grad()
    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        from trustbench.sae.stats import firing_counts

        code = self.trainer.sae.encode_sparse(x)
        return self.trainer.sae.decode(code), firing_counts(code, self.F)


class Sparsify(Contender):
    """sparsify/trainer.py: normalise the decoder, forward, backward, project, Adam."""

    def build(self) -> None:
        from sparsify import SparseCoder, SparseCoderConfig

        self.version = _version("eai-sparsify")
        torch.manual_seed(0)
        config = SparseCoderConfig(num_latents=self.F, k=self.k, normalize_decoder=True)
        self.sae = SparseCoder(self.d, config, dtype=torch.float32)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=self.lr)
        self.started = False
        self.inactive = torch.zeros(self.F, dtype=torch.long)

    def step(self, x: Tensor) -> None:
        if not self.started:
            self.sae.b_dec.data = x.mean(0)
            self.started = True
        self.sae.set_decoder_norm_to_unit_norm()
        variance = (x - x.mean(0)).pow(2).sum()
        with self.autocast():
            dead = self.inactive > self.dead_after if self.dead_after else None
            out = self.sae(x, y=x, dead_mask=dead, total_variance=variance)
        self.inactive += len(x)
        self.inactive[out.latent_indices.flatten()] = 0
        (out.fvu + out.auxk_loss / 32).backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.sae(x, y=x, dead_mask=None)
        active = out.latent_indices[out.latent_acts > 0]
        return out.sae_out, torch.bincount(active.flatten(), minlength=self.F)


class SaeLens(Contender):
    """SAETrainer._train_step of sae_lens/training/sae_trainer.py with a TopKTrainingSAE."""

    def build(self) -> None:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        self.version = _version("sae-lens")
        torch.manual_seed(0)
        config = TopKTrainingSAEConfig(
            d_in=self.d,
            d_sae=self.F,
            k=self.k,
            aux_loss_coefficient=1.0 if self.dead_after else 0.0,  # 1.0 is its default
            device="cpu",
        )
        self.sae = TopKTrainingSAE(config)
        trainer_config = SAETrainerConfig(
            total_training_samples=self.steps * 2048,
            train_batch_size_samples=2048,
            lr=self.lr,
            device="cpu",
            lr_end=self.lr / 10,
            dead_feature_window=max(1, self.dead_after // 2048) if self.dead_after else 1000,
            autocast=False,  # entered in step(): on the CPU as its trainer does on a GPU
        )
        self.trainer = SAETrainer(trainer_config, self.sae, iter(()))

    def step(self, x: Tensor) -> None:
        with self.autocast():
            self.trainer._train_step(self.sae, x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        acts = self.sae.encode(x)
        return self.sae.decode(acts), (acts > 0).sum(0)


class DictionaryLearning(Contender):
    """TopKTrainer.update of dictionary_learning/trainers/top_k.py."""

    def build(self) -> None:
        from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer

        self.version = _version("dictionary-learning")
        self.trainer = TopKTrainer(
            steps=max(self.steps, 10), activation_dim=self.d, dict_size=self.F, k=self.k, layer=0,
            lm_name="none", dict_class=AutoEncoderTopK, lr=self.lr, auxk_alpha=0.0, warmup_steps=0,
            seed=0, device="cpu",
        )  # fmt: skip
        self.done = 0

    def step(self, x: Tensor) -> None:
        with self.autocast():
            self.trainer.update(self.done, x)
        self.done += 1

    @torch.no_grad()
    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        acts = self.trainer.ae.encode(x, use_threshold=False)
        return self.trainer.ae.decode(acts), (acts > 0).sum(0)


class Dense(Contender):
    """Plain PyTorch: torch.topk, scatter, dense matmuls, autograd, torch.optim.Adam."""

    compiled = False

    def build(self) -> None:
        torch.manual_seed(0)
        W = torch.nn.functional.normalize(torch.randn(self.F, self.d), dim=1)
        zeros = (torch.zeros(self.F), torch.zeros(self.d))
        self.parameters = [t.requires_grad_() for t in (W.clone(), W.clone(), *zeros)]
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.lr)
        self.loss = torch.compile(self.plain_loss) if self.compiled else self.plain_loss

    def plain_loss(
        self, x: Tensor, W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, b_dec: Tensor
    ) -> Tensor:
        pre = (x - b_dec) @ W_enc.T + b_enc
        top = pre.topk(self.k)
        acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        return (x - acts @ W_dec - b_dec).square().sum(1).mean()

    def step(self, x: Tensor) -> None:
        with self.autocast():
            loss = self.loss(x, *self.parameters)
        loss.backward()
        W_dec = self.parameters[1]
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            self.optimizer.step()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        self.optimizer.zero_grad()


class Compiled(Dense):
    """The same under torch.compile."""

    compiled = True


class Matmul(Contender):
    """The floor: the encoder's matmul and nothing else, by torch."""

    def build(self) -> None:
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        self.W = torch.randn(self.F, self.d, dtype=dtype)

    def step(self, x: Tensor) -> None:
        x.to(self.W.dtype) @ self.W.T


CONTENDERS: dict[str, type[Contender]] = {
    "matmul only": Matmul,
    "trustbench": Trustbench,
    "sparsify": Sparsify,
    "SAELens": SaeLens,
    "dictionary_learning": DictionaryLearning,
    "PyTorch dense": Dense,
    "PyTorch dense, compiled": Compiled,
}
