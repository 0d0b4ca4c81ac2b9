"""One SAE's training step on Triton kernels, without waiting for the device.

    encode -> reconstruct (residual, loss) -> transpose the code -> gradients straight into Adam

Weights are fp32; the matmul and the gathers read bf16 copies that Adam's kernel keeps. The residual
stands in for dL/dx_hat: the factor 2 / N is applied with the learning rate. A loss that is not finite
changes no weight, and is reported when the figures are next read. A step is captured as a CUDA graph
at its second run.

Some sizes only the data tells: how many entries ReLU keeps, how many features are dead. A step takes
room for what was last seen, and more. Where it was too little the step changes nothing; the host
learns of it when this SAE's next step comes (all other layers' steps lie between, so that the device
is never idle for it) and does the step again, exactly.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trustbench.defaults import DEAD_AFTER_TOKENS
from trustbench.errors import NonFiniteError
from trustbench.ops import dispatch
from trustbench.ops.codes import entry_rows
from trustbench.sae import SAE
from trustbench.steps import dense as dense_step
from trustbench.steps import device_codes
from trustbench.steps.fused import AdamOptions, LayerTrainer, StepResult

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
        dead_after_tokens: int = DEAD_AFTER_TOKENS,
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
        self.l0 = float("inf")  # as last seen
        self.dead_count = 0  # as last seen; AuxK is on where it is not 0
        self.fits = torch.ones(1, dtype=torch.bool, device=device)  # the last step had room
        self._fits_seen = torch.ones(1, dtype=torch.bool, pin_memory=device.type == "cuda")
        self._seen = torch.cuda.Event() if device.type == "cuda" else None
        self._unsettled: tuple[Tensor, float, float] | None = None  # x, lr, sparsity of that step
        self.copies: tuple[Tensor, Tensor] | None = None
        self._graphs = graphs
        # For every shape of x: the sizes that were last run with, and their graph.
        self._captured: dict[tuple[int, ...], tuple[Any, torch.cuda.CUDAGraph | None]] = {}
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
        self.settle()
        x = self.sae.scaled(x, self.compute_dtype)
        self.steps += 1
        self._set_figures(len(x), lr, sparsity)
        exact = not self._room_known
        if self._graphs is None or exact:
            self._run(x, exact=exact)
        else:
            self._replay(x)
        if self._takes_room and not exact:
            self._unsettled = x, lr, sparsity
            self._fits_seen.copy_(self.fits, non_blocking=True)
            if self._seen is not None:
                self._seen.record()
        return self._measured(x) if measure else None

    def settle(self) -> None:
        """Do the last step again if there was too little room for it."""
        if self._unsettled is None:
            return
        x, lr, sparsity = self._unsettled
        self._unsettled = None
        if self._seen is not None:
            self._seen.synchronize()
        if not bool(self._fits_seen):
            self._set_figures(len(x), lr, sparsity)
            self._run(x, exact=True)

    def _set_figures(self, N: int, lr: float, sparsity: float) -> None:
        kernels, a = dispatch.triton("sparse_adam"), self.adam
        # The penalty's gradient is scaled by 2 / N with the rest.
        relu = self.sae.cfg.activation == "relu"
        slope = sparsity * self.sae.cfg.l1_coefficient / 2 if relu else 0.0
        figures = kernels.scalars(self.steps, lr, a.beta1, a.beta2, 2 / N, slope)
        self.figures.copy_(kernels.on_device(figures, self.figures.device), non_blocking=True)

    @property
    def _auxk(self) -> bool:
        return self.dead_count > 0 and self.sae.cfg.auxk_features > 0

    @property
    def sparse_relu(self) -> bool:
        """Whether the next step has a ReLU code of a size that only the data tells."""
        return self.sae.cfg.activation == "relu" and not self.dense

    @property
    def _takes_room(self) -> bool:
        """Whether the next step guesses sizes."""
        return self.sparse_relu or self.sae.cfg.activation == "batchtopk" or self._auxk

    @property
    def _room_known(self) -> bool:
        return not self.sparse_relu or math.isfinite(self.l0)

    def _replay(self, x: Tensor) -> None:
        assert self._graphs is not None
        sizes = (
            self.dense,
            device_codes.entries(self, len(x)),
            self._auxk and device_codes.room(self.dead_count),
        )
        known, graph = self._captured.get(x.shape, (None, None))
        if known != sizes:  # the first run compiles what it needs
            self._captured[x.shape] = sizes, None
            self._run(x)
            return
        shared = self._graphs.input_like(x)
        shared.copy_(x)
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._graphs.pool):
                self._run(shared)
            self._captured[x.shape] = sizes, graph
        graph.replay()

    def _run(self, x: Tensor, *, exact: bool = False) -> None:
        """Everything that a graph may hold: from scaled activations to new weights.

        What changes from step to step is read from `figures`, on the device. exact: ask the device
        for sizes, instead of taking room.
        """
        self.fits.fill_(True)
        centred = (x - self.sae.b_dec).to(self.compute_dtype)
        if self.dense:
            mse, penalty, active, fired = dense_step.run(self, x, centred, self.figures[_SLOPE])
            self._finish(len(x), mse, penalty, torch.zeros_like(mse), active, fired)
            return
        code = device_codes.encode(self, centred, exact)
        values, indices, token, fits = code.values, code.indices, code.tokens, code.fits
        read_dec = self.read_weights[1]
        error, squared, _ = dispatch.triton("reconstruct").reconstruct(
            values, indices, read_dec, self.sae.b_dec, x, code.offsets,
            gradient=False, error_dtype=self.compute_dtype,
        )  # fmt: skip
        mse = squared.sum() / len(x)
        penalty, auxk = torch.zeros_like(mse), torch.zeros_like(mse)
        cfg = self.sae.cfg
        if cfg.activation == "relu":
            norms: Any = 1.0
            if cfg.l1_form == "decoder_norm":
                norms = self.weights.W_dec.norm(dim=1)[indices.long()]
            penalty = 2 * self.figures[_SLOPE] * (values * norms).sum() / len(x)
        sources, grads = centred, error
        flat_values, flat_indices = values, indices
        aux = device_codes.auxk(self, centred, exact) if self._auxk else None
        if aux is not None:
            e_hat = dispatch.triton("decode").decode(aux.values, aux.indices, read_dec, None)
            aux_error = e_hat + error
            auxk = aux_error.float().square().sum() / len(x) * aux.any
            # AuxK's entries join the code as tokens N .. 2N of their own.
            mine = entry_rows(indices, None) if token is None else token
            token = torch.cat([mine, entry_rows(aux.indices, None) + len(x)])
            flat_values = torch.cat([values.flatten(), aux.values.flatten()])
            flat_indices = torch.cat([indices.flatten(), aux.indices.flatten()])
            sources = torch.cat([centred, centred])
            grads = torch.cat([error, aux_error * cfg.auxk_coefficient])
            fits = aux.fits if fits is None else fits & aux.fits
        loss = mse + penalty + cfg.auxk_coefficient * auxk
        if fits is not None:
            self.fits.copy_(fits)
            loss = torch.where(fits[0], loss, float("nan"))
        self.guard(loss)
        by_feature = dispatch.triton("transpose_code").transpose_code(
            flat_indices, cfg.d_sae, token, flat_values if token is not None else None
        )
        fired = self._apply(flat_values, by_feature, sources, grads, error)
        self._finish(len(x), mse, penalty, auxk, (values > 0).sum(), fired)
        if cfg.activation == "batchtopk":
            self._update_threshold(torch.where(self.fits, values, 0.0))

    @property
    def read_weights(self) -> tuple[Tensor, Tensor]:
        """(W_enc, W_dec) as the matmuls and gathers read them."""
        return self.copies or self.weights[:2]

    def _apply(
        self,
        values: Tensor,
        by_feature: tuple[Tensor, Tensor, Tensor],
        sources: Tensor,
        grads: Tensor,
        error: Tensor,
    ) -> Tensor:
        """Adam on everything; returns how often each feature was active."""
        kernels, cfg, a = dispatch.triton("sparse_adam"), self.sae.cfg, self.adam
        shared = (
            values, by_feature, sources, grads, self.figures, (a.beta1, a.beta2), a.eps,
            cfg.unit_norm, cfg.l1_form == "decoder_norm",
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
        # A step without room has not been.
        since = torch.where(fired > 0, 0, self.inactive + N)
        self.inactive.copy_(torch.where(self.fits, since, self.inactive))
        total = self.figures[_LOSS]
        bad = self.report[_BAD_STEP]
        now_bad = (bad < 0) & ~torch.isfinite(total) & self.fits[0]
        bad = torch.where(now_bad, self.figures[_NUMBER], bad)
        self.report.copy_(torch.stack([total, mse, auxk, active / N, bad]))

    def _measured(self, x: Tensor) -> StepResult:
        self.settle()
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
        self.l0, self.dead_count = l0, round(dead_fraction * self.sae.cfg.d_sae)
        fvu = mse / spread if spread else float("nan")
        return StepResult(total, mse, auxk, fvu=fvu, l0=l0, dead_fraction=dead_fraction)

    def _own_state(self) -> dict[str, Tensor]:
        self.settle()
        seen = torch.tensor([self.l0, float(self.dead_count)])
        return super()._own_state() | {"seen": seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict`; KeyError or RuntimeError when it is not this SAE's."""
        super().load_state_dict(state)
        self.l0, self.dead_count = float(state["seen"][0]), int(state["seen"][1])
        self.weights_changed()
