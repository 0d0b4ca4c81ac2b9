"""One SAE training step, by us and by each peer.

Every peer runs its own classes, in the order of operations of its own trainer (the file named in its
docstring). `dead_after` switches AuxK on, each contender with its own form of it, for features
inactive for so many tokens; 0 leaves it off (no feature is dead in a speed run).
"""

from __future__ import annotations

import importlib.util
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import flex_sae
from benchmarks.peers.base import Contender, autocast, version_of

SMALL = {"N": 4, "d": 8, "F": 16, "k": 2}


@dataclass
class Step(Contender):
    """`step(x)` is one full Adam step on x [N, d]; `code(x)` is for measuring quality."""

    N: int
    d: int
    F: int
    k: int
    lr: float
    steps: int
    bf16: bool
    dead_after: int
    layers: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.files: dict[str, Tensor] = {}
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def step(self, x: Tensor) -> None:
        raise NotImplementedError

    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x_hat [N, d], how often each feature is active [F])."""
        raise NotImplementedError

    def prepare(self) -> Tensor:
        return torch.randn(self.N, self.d, device=self.device)

    def run(self, given: Tensor) -> None:
        self.step(given)

    def train(self, file: str, start: int, stop: int) -> list[float]:
        """Train on rows start to stop of a saved tensor; the seconds of every step."""
        seconds = []
        for x in self._rows(file)[start:stop].split(self.N):
            began = time.perf_counter()
            self.step(x)
            seconds.append(time.perf_counter() - began)
        return seconds

    def test(self, file: str) -> dict[str, float]:
        """fvu, and the share of features never active, on a saved tensor."""
        x = self._rows(file)
        error, fired = 0.0, torch.zeros(self.F, dtype=torch.long)
        for part in x.split(self.N):
            x_hat, counts = self.code(part)
            error += (part - x_hat).double().square().sum().item()
            fired += counts
        total = (x - x.mean(0)).double().square().sum().item()
        return {"fvu": error / total, "never_active": (fired == 0).double().mean().item()}

    def _rows(self, file: str) -> Tensor:
        if file not in self.files:
            self.files[file] = torch.load(file)
        return self.files[file]


def our_step(d: int, F: int, k: int, *, bf16: bool, dead_after: int, device: str) -> Any:
    """The step that `trustbench train` takes for one SAE: the benchmarks make it only here."""
    from trustbench.sae import SAE, SAEConfig
    from trustbench.steps import pick
    from trustbench.steps.device import GraphMemory

    sae = SAE(SAEConfig(d_in=d, d_sae=F, k=k, auxk=-1 if dead_after else 0)).to(device)
    return pick(
        sae,
        dead_after_tokens=dead_after or 10_000_000,
        matmul_dtype="bf16" if bf16 else "fp32",
        graphs=GraphMemory() if device == "cuda" else None,
    )


class Trustbench(Step):
    """Our step, of as many SAEs as there are layers; bf16: the encoder's matmul operands."""

    def build(self) -> None:
        self.version = version_of("trustbench")
        sizes = {"d": self.d, "F": self.F, "k": self.k, "bf16": self.bf16}
        self.trainers = [
            our_step(**sizes, dead_after=self.dead_after, device=self.device)
            for _ in range(self.layers)
        ]

    def step(self, x: Tensor) -> None:
        for trainer in self.trainers:
            if trainer.steps == 0:
                from trustbench.sae.init import initialise

                initialise(trainer.sae, x)
                trainer.refresh_copies()
            trainer.step(x, self.lr)

    @torch.no_grad()
    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        from trustbench.sae.stats import firing_counts

        sae = self.trainers[0].sae
        code = sae.encode_sparse(x)
        return sae.decode(code), firing_counts(code, self.F)


class Sparsify(Step):
    """sparsify/trainer.py: normalise the decoder, forward, backward, project, Adam."""

    def build(self) -> None:
        from sparsify import SparseCoder, SparseCoderConfig

        self.version = version_of("eai-sparsify")
        torch.manual_seed(0)
        config = SparseCoderConfig(num_latents=self.F, k=self.k, normalize_decoder=True)
        self.sae = SparseCoder(self.d, config, device=self.device, dtype=torch.float32)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=self.lr)
        self.started = False
        self.inactive = torch.zeros(self.F, dtype=torch.long, device=self.device)

    def step(self, x: Tensor) -> None:
        if not self.started:
            self.sae.b_dec.data = x.mean(0)
            self.started = True
        self.sae.set_decoder_norm_to_unit_norm()
        variance = (x - x.mean(0)).pow(2).sum()
        with autocast(self.bf16, self.device):
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


class SaeLens(Step):
    """SAETrainer._train_step of sae_lens/training/sae_trainer.py with a TopKTrainingSAE."""

    def build(self) -> None:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        self.version = version_of("sae-lens")
        torch.manual_seed(0)
        config = TopKTrainingSAEConfig(
            d_in=self.d, d_sae=self.F, k=self.k, device=self.device,
            aux_loss_coefficient=1.0 if self.dead_after else 0.0,  # 1.0 is its default
        )  # fmt: skip
        self.sae = TopKTrainingSAE(config)
        trainer_config = SAETrainerConfig(
            total_training_samples=self.steps * self.N, train_batch_size_samples=self.N,
            lr=self.lr, lr_end=self.lr / 10, device=self.device,
            dead_feature_window=max(1, self.dead_after // self.N) if self.dead_after else 1000,
            autocast=False,  # entered in step(): on the CPU as its trainer does on a GPU
        )  # fmt: skip
        self.trainer = SAETrainer(trainer_config, self.sae, iter(()))

    def step(self, x: Tensor) -> None:
        with autocast(self.bf16, self.device):
            self.trainer._train_step(self.sae, x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        acts = self.sae.encode(x)
        return self.sae.decode(acts), (acts > 0).sum(0)


class DictionaryLearning(Step):
    """TopKTrainer.update of dictionary_learning/trainers/top_k.py."""

    def build(self) -> None:
        from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer

        self.version = version_of("dictionary-learning")
        self.trainer = TopKTrainer(
            steps=max(self.steps, 10), activation_dim=self.d, dict_size=self.F, k=self.k, layer=0,
            lm_name="none", dict_class=AutoEncoderTopK, lr=self.lr, warmup_steps=0, seed=0,
            device=self.device,
            auxk_alpha=1 / 32 if self.dead_after else 0.0,  # 1 / 32 is its default
        )  # fmt: skip
        self.trainer.dead_feature_threshold = self.dead_after or 10_000_000
        self.done = 0

    def step(self, x: Tensor) -> None:
        with autocast(self.bf16, self.device):
            self.trainer.update(self.done, x)
        self.done += 1

    @torch.no_grad()
    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        acts = self.trainer.ae.encode(x, use_threshold=False)
        return self.trainer.ae.decode(acts), (acts > 0).sum(0)


class Overcomplete(Step):
    """train_sae of overcomplete/sae/train.py, monitoring off, with a TopKSAE."""

    def build(self) -> None:
        # The package's first import loads vision models (torchvision, OpenCV); its SAEs need none.
        if "overcomplete" not in sys.modules:
            found = importlib.util.find_spec("overcomplete")
            if found is None:
                raise ModuleNotFoundError("No module named 'overcomplete'")
            package = types.ModuleType("overcomplete")
            package.__path__ = list(found.submodule_search_locations or ())
            sys.modules["overcomplete"] = package
        from overcomplete.sae import TopKSAE
        from overcomplete.sae.losses import top_k_auxiliary_loss
        from overcomplete.sae.trackers import DeadCodeTracker

        self.version = version_of("overcomplete")
        torch.manual_seed(0)
        self.sae = TopKSAE(self.d, self.F, self.k, device=self.device).train()
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=self.lr)
        self.tracker = DeadCodeTracker(self.F, self.device)
        # Its AuxK has no notion of dead features: half of all that were not chosen.
        self.auxk = top_k_auxiliary_loss if self.dead_after else None

    def step(self, x: Tensor) -> None:
        self.optimizer.zero_grad()
        with autocast(self.bf16, self.device):
            pre, codes, x_hat = self.sae(x)
            if self.auxk:
                loss = self.auxk(x, x_hat, pre, codes, self.sae.get_dictionary())
            else:
                loss = (x - x_hat).square().mean()
        self.tracker.update(codes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, codes, x_hat = self.sae(x)
        return x_hat, (codes > 0).sum(0)


class Dense(Step):
    """Plain PyTorch: torch.topk, scatter, dense matmuls, autograd, torch.optim's fused Adam."""

    compiled = False

    def build(self) -> None:
        torch.manual_seed(0)
        W = torch.nn.functional.normalize(torch.randn(self.F, self.d, device=self.device), dim=1)
        zeros = [torch.zeros(n, device=self.device) for n in (self.F, self.d)]
        self.parameters = [t.requires_grad_() for t in (W.clone(), W.clone(), *zeros)]
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.lr, fused=True)
        self.loss = (
            torch.compile(self.plain_loss, dynamic=False) if self.compiled else self.plain_loss
        )

    def plain_loss(
        self, x: Tensor, W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, b_dec: Tensor
    ) -> Tensor:
        pre = (x - b_dec) @ W_enc.T + b_enc
        top = pre.topk(self.k)
        acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        return (x - acts @ W_dec - b_dec).square().sum(1).mean()

    def step(self, x: Tensor) -> None:
        with autocast(self.bf16, self.device):
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


class EmbeddingBag(Dense):
    """Matmul, torch.topk, embedding_bag, autograd, torch.optim's fused Adam."""

    def plain_loss(
        self, x: Tensor, W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, b_dec: Tensor
    ) -> Tensor:
        top = ((x - b_dec) @ W_enc.T + b_enc).topk(self.k, sorted=False)
        return self.loss_of(top.indices, W_dec, top.values.relu().float(), b_dec, x)

    loss_of: Callable[..., Tensor] = staticmethod(flex_sae.bag_loss)


class FlexSae(EmbeddingBag):
    """The same with flex-sae's loss, in PyTorch."""

    loss_of = flex_sae.Loss.apply


class FlexSaeKernels(EmbeddingBag):
    """The same with flex-sae's own Triton kernels."""

    def build(self) -> None:
        self.loss_of = flex_sae.kernels()
        super().build()


class Matmul(Step):
    """The floor: the encoder's matmul and nothing else, by torch."""

    def build(self) -> None:
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        self.W = torch.randn(self.F, self.d, dtype=dtype, device=self.device)

    def step(self, x: Tensor) -> None:
        x.to(self.W.dtype) @ self.W.T


CONTENDERS: dict[str, type[Step]] = {
    "trustbench": Trustbench,
    "sparsify": Sparsify,
    "SAELens": SaeLens,
    "dictionary_learning": DictionaryLearning,
    "overcomplete": Overcomplete,
    "PyTorch dense": Dense,
    "PyTorch dense, compiled": Compiled,
    "topk, embedding_bag": EmbeddingBag,
    "flex-sae's loss in PyTorch": FlexSae,
    "flex-sae's kernels": FlexSaeKernels,
    "matmul only": Matmul,
}
