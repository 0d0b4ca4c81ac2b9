"""One SAE's training step on Triton kernels, without asking the device for anything.

    encode -> reconstruct (residual, loss) -> transpose the code -> gradients straight into Adam

Weights are fp32; the matmul and the gathers read bf16 copies that Adam's kernel keeps. The residual
stands in for dL/dx_hat: the factor 2 / N is applied with the learning rate. A loss that is not finite
changes no weight, and is reported when the figures are next read. A step whose sizes do not depend
on the data (TopK, and ReLU in its dense regime) is captured as a CUDA graph at its second run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustbench.errors import NonFiniteError
from trustbench.ops import dispatch
from trustbench.ops.codes import TopKCode, entry_rows
from trustbench.sae import SAE
from trustbench.sae.losses import among_dead
from trustbench.train import dense_step
from trustbench.train.step import AdamOptions, LayerTrainer, StepResult

_SCALE, _LOSS, _NUMBER, _SLOPE = 2, 3, 4, 5  # in the figures of a step; see kernels/triton/_adam.py
_BAD_STEP = 4  # in the report of a step: total, mse, auxk, l0, bad step


class GraphMemory:
    """What the graphs of all layers share: they run one after the other, on the same memory."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self._inputs: dict[tuple[Any, ...], Tensor] = {}

    def input_like(self, x: Tensor) -> Tensor:
        """The tensor that graphs read inputs of this shape from."""
        key = (*x.shape, x.dtype)
        if key not in self._inputs:
            self._inputs[key] = torch.empty_like(x)
        return self._inputs[key]


class DeviceTrainer(LayerTrainer):
    """A LayerTrainer for TopK, BatchTopK and ReLU on Triton kernels.

    Parameters
    ----------
    sae, adam, dead_after_tokens, name, moment_dtype
        As for LayerTrainer.
    compute_dtype : torch.dtype
        bf16, or fp32: what the matmuls and gathers read, and what the residual is kept in.
    graphs : GraphMemory or None
        None: never capture.
    dense_above : float
        For "relu": the L0 above which a step runs on dense matmuls. None: what `trustbench tune`
        measured on this card, or dense_step.DENSE_ABOVE.
    """

    def __init__(
        self,
        sae: SAE,
        adam: AdamOptions | None = None,
        *,
        dead_after_tokens: int = 10_000_000,
        name: str = "",
        moment_dtype: torch.dtype = torch.float32,
        compute_dtype: torch.dtype = torch.bfloat16,
        graphs: GraphMemory | None = None,
        dense_above: float | None = None,
    ) -> None:
        super().__init__(
            sae, adam, dead_after_tokens=dead_after_tokens, name=name, moment_dtype=moment_dtype
        )
        if sae.cfg.activation == "jumprelu":
            raise NotImplementedError(
                "JumpReLU trains through LayerTrainer: no fused step has it yet"
            )
        device = sae.W_enc.device
        self.compute_dtype = compute_dtype
        if dense_above is None:
            dense_above = dense_step.measured_crossover(device, sae.cfg.d_in, sae.cfg.d_sae)
        self.dense_above = dense_above
        self.figures = torch.zeros(6, device=device)
        self.report = torch.zeros(5, device=device)
        self.report[_BAD_STEP] = -1
        self.l0 = float("inf")  # at the last measurement
        self.any_dead = False  # at the last measurement: AuxK is on
        self.copies: tuple[Tensor, Tensor] | None = None
        self._graphs = graphs
        self._captured: dict[tuple[Any, ...], torch.cuda.CUDAGraph | None] = {}
        self.weights_changed()

    def weights_changed(self) -> None:
        """Copy the weights to where the kernels read them."""
        if self.compute_dtype == torch.float32:
            return
        fresh = [w.to(self.compute_dtype) for w in self.weights[:2]]
        if self.copies is None:
            self.copies = (fresh[0], fresh[1])
        else:  # in place: captured graphs hold their addresses
            for copy, new in zip(self.copies, fresh, strict=True):
                copy.copy_(new)

    @property
    def dense(self) -> bool:
        """Whether the next step runs on dense matmuls."""
        return self.sae.cfg.activation == "relu" and self.l0 > self.dense_above

    @torch.no_grad()
    def step(
        self, x: Tensor, lr: float, *, sparsity: float = 1.0, measure: bool = False
    ) -> StepResult | None:
        """Train on activations x [N, d] as the model gives them; figures only when `measure`.

        Raises NonFiniteError, when measuring, for any step since the last measurement whose loss was
        not finite. That step changed no weight.
        """
        x = self.sae.scaled(x, self.compute_dtype)
        self.steps += 1
        kernels, a = dispatch.triton("sparse_adam"), self.adam
        figures = kernels.scalars(self.steps, lr, a.beta1, a.beta2, 2 / len(x))
        # The penalty's gradient is scaled by 2 / N with the rest.
        figures.append(sparsity * self.sae.cfg.l1_coefficient / 2)
        self.figures.copy_(kernels.on_device(figures, self.figures.device), non_blocking=True)
        sizes_known = self.sae.cfg.activation == "topk" or self.dense
        if self._graphs is None or not sizes_known or self._auxk:
            self._run(x, sparsity)
        else:
            self._replay(x, sparsity)
        return self._measured(x) if measure else None

    @property
    def _auxk(self) -> bool:
        return self.any_dead and self.sae.cfg.auxk_features > 0

    def _replay(self, x: Tensor, sparsity: float) -> None:
        assert self._graphs is not None
        key = (*x.shape, self.dense)
        if key not in self._captured:
            self._captured[key] = None  # the first run compiles what it needs
            self._run(x, sparsity)
            return
        shared = self._graphs.input_like(x)
        shared.copy_(x)
        graph = self._captured[key]
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._graphs.pool):
                self._run(shared, sparsity)
            self._captured[key] = graph
        graph.replay()

    def _run(self, x: Tensor, sparsity: float) -> None:
        """Everything that a graph may hold: from scaled activations to new weights."""
        centred = (x - self.sae.b_dec).to(self.compute_dtype)
        if self.dense:
            mse, penalty, active, fired = dense_step.run(self, x, centred, self.figures[_SLOPE])
            self._finish(len(x), mse, penalty, torch.zeros_like(mse), active, fired)
            return
        values, indices, offsets = self._encode(centred)
        read_dec = self.read_weights[1]
        error, squared, _ = dispatch.triton("reconstruct").reconstruct(
            values, indices, read_dec, self.sae.b_dec, x, offsets,
            gradient=False, error_dtype=self.compute_dtype,
        )  # fmt: skip
        mse = squared.sum() / len(x)
        penalty, auxk = torch.zeros_like(mse), torch.zeros_like(mse)
        cfg, slope = self.sae.cfg, 0.0
        if cfg.activation == "relu":
            slope = sparsity * cfg.l1_coefficient / 2
            norms: Any = 1.0
            if cfg.l1_form == "decoder_norm":
                norms = self.weights.W_dec.norm(dim=1)[indices.long()]
            penalty = 2 * slope * (values * norms).sum() / len(x)
        sources, grads, token = centred, error, None
        flat_values, flat_indices = values, indices
        aux = self._auxk_code(centred) if self._auxk else None
        if offsets is not None or aux is not None:
            token = entry_rows(indices, offsets)
        if aux is not None:
            aux_values, aux_indices = aux
            e_hat = dispatch.triton("decode").decode(aux_values, aux_indices, read_dec, None)
            aux_error = e_hat + error
            auxk = aux_error.float().square().sum() / len(x)
            # AuxK's entries join the code as tokens N .. 2N of their own.
            assert token is not None
            token = torch.cat([token, entry_rows(aux_indices, None) + len(x)])
            flat_values = torch.cat([values.flatten(), aux_values.flatten()])
            flat_indices = torch.cat([indices.flatten(), aux_indices.flatten()])
            sources = torch.cat([centred, centred])
            grads = torch.cat([error, aux_error * cfg.auxk_coefficient])
        self.guard(mse + penalty + cfg.auxk_coefficient * auxk)
        by_feature = dispatch.triton("transpose_code").transpose_code(flat_indices, cfg.d_sae, token)
        fired = self._apply(flat_values, by_feature, sources, grads, error, slope)
        self._finish(len(x), mse, penalty, auxk, (values > 0).sum(), fired)
        if cfg.activation == "batchtopk":
            self._update_threshold(values)

    @property
    def read_weights(self) -> tuple[Tensor, Tensor]:
        """(W_enc, W_dec) as the matmuls and gathers read them."""
        return self.copies or self.weights[:2]

    def _encode(self, centred: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        cfg, arguments = self.sae.cfg, (centred, self.read_weights[0], self.weights.b_enc)
        if cfg.activation == "topk":
            return *dispatch.triton("encode_topk").encode_topk(*arguments, cfg.k), None
        if cfg.activation == "relu":
            return dispatch.triton("encode_relu").encode_relu(*arguments, None)
        return dispatch.triton("encode_batchtopk").encode_batchtopk(*arguments, cfg.k)

    def _auxk_code(self, centred: Tensor) -> TopKCode | None:
        """The largest pre-activations among the dead features: a matmul with those rows alone.

        None when they have all come back since the last measurement.
        """
        encode = dispatch.triton("encode_topk").encode_topk
        W, b = self.read_weights[0], self.weights.b_enc
        return among_dead(
            self.dead,
            self.sae.cfg.auxk_features,
            lambda features, k: encode(centred, W[features], b[features], k),
        )

    def _apply(
        self,
        values: Tensor,
        by_feature: tuple[Tensor, Tensor, Tensor],
        sources: Tensor,
        grads: Tensor,
        error: Tensor,
        slope: float,
    ) -> Tensor:
        """Adam on everything; returns how often each feature was active."""
        kernels, cfg, a = dispatch.triton("sparse_adam"), self.sae.cfg, self.adam
        shared = (
            values, by_feature, sources, grads, self.figures, (a.beta1, a.beta2), a.eps,
            cfg.unit_norm, slope, cfg.l1_form == "decoder_norm",
        )  # fmt: skip
        through_error = error.sum(0, dtype=torch.float32)
        if a.clip_norm:
            through_x, _, squares = kernels.sparse_adam(
                self.weights, (None,) * 6, None, *shared, update=False
            )
            self.clip(squares.sum() + (through_error + through_x).square().sum())
        through_x, fired, _ = kernels.sparse_adam(self.weights, self.moments, self.copies, *shared)
        self.update_b_dec(through_error + through_x)
        return fired

    def guard(self, loss: Tensor) -> None:
        """Tell the kernels this step's loss: they change nothing where it is not finite."""
        self.figures[_LOSS] = loss

    def clip(self, squared_norm: Tensor) -> None:
        """Reduce this step's scale so that the gradient's global norm is at most clip_norm."""
        scale = self.figures[_SCALE]
        norm = scale * squared_norm.sqrt()
        self.figures[_SCALE] = scale * (self.adam.clip_norm / (norm + 1e-6)).clamp(max=1.0)

    def update_b_dec(self, grad: Tensor) -> None:
        """Adam on b_dec, from a gradient that is still to be scaled."""
        a = self.adam
        dispatch.triton("adam").adam(
            self.small[0], grad.view(1, -1), *self.small_moments[:2], self.figures,
            a.beta1, a.beta2, a.eps, False,
        )  # fmt: skip

    def _finish(
        self, N: int, mse: Tensor, penalty: Tensor, auxk: Tensor, active: Tensor, fired: Tensor
    ) -> None:
        self.inactive.copy_(torch.where(fired > 0, 0, self.inactive + N))
        total = self.figures[_LOSS]
        bad = self.report[_BAD_STEP]
        now_bad = (bad < 0) & ~torch.isfinite(total)
        bad = torch.where(now_bad, self.figures[_NUMBER], bad)
        self.report.copy_(torch.stack([total, mse, auxk, active / N, bad]))

    def _measured(self, x: Tensor) -> StepResult:
        variance = torch.var(x.float(), dim=0, correction=0).sum()
        dead = self.dead.float().mean()
        host = torch.cat([self.report, variance[None], dead[None]]).tolist()
        total, mse, auxk, l0, bad_step, spread, dead_fraction = host
        if bad_step >= 0:
            self.report[_BAD_STEP] = -1
            raise NonFiniteError(
                f"{self.name or 'SAE'}: the loss was not finite at step {bad_step:.0f}; that step"
                " changed no weight. A lower lr, clip_norm or normalize='expected_norm' may help."
            )
        self.l0, self.any_dead = l0, dead_fraction > 0
        fvu = mse / spread if spread else float("nan")
        return StepResult(total, mse, auxk, fvu=fvu, l0=l0, dead_fraction=dead_fraction)

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on."""
        chosen = torch.tensor([self.l0, float(self.any_dead)])
        return super().state_dict() | {"measured": chosen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict`; KeyError or RuntimeError when it is not this SAE's."""
        super().load_state_dict(state)
        self.l0, self.any_dead = float(state["measured"][0]), bool(state["measured"][1])
        self.weights_changed()
