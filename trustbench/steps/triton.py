"""TritonStep: the fused step on Triton kernels, without waiting for the device.

    encode -> reconstruct (residual, loss) -> transpose the code -> gradients straight into Adam

Weights are fp32; the matmul and the gathers read bf16 copies that Adam's kernel keeps. The residual
stands in for dL/dx_hat: the factor 2 / N is applied with the learning rate. A loss that is not finite
changes no weight, and is reported when the metrics are next read. A step is captured as a CUDA graph
at its second run.

Some sizes only the data tells: how many entries ReLU keeps, how many features are dead. A step takes
room for what was last seen, and more. Where it was too little the step changes nothing; the host
learns of it when this SAE's next step comes (all other layers' steps lie between, so that the device
is never idle for it) and does the step again, exactly. Several processes that share the SAE take
exact sizes, and no graphs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trustbench import ops
from trustbench.ops.scalars import COUNT, LOSS, NUMBER, SCALE, SLOPE, step_scalars
from trustbench.sae import SAE
from trustbench.sae.families.base import How, Penalty, Terms, View
from trustbench.steps import dense
from trustbench.steps.base import AdamOptions, Step, StepResult
from trustbench.steps.device import Batch, GraphMemory, held, joined_entries, room
from trustbench.steps.fused import feature_sums, repeated

_BAD_STEP = 5  # in the report of a step: total, mse, auxk, l0, ‖error‖², bad step


class TritonStep(Step):
    """A step on a CUDA device (or in Triton's interpreter). See Step.

    Parameters
    ----------
    compute_dtype : torch.dtype
        bf16, or fp32: what the matmuls and gathers read, and what the residual is kept in.
    graphs : GraphMemory or None
        None: never capture.
    dense_above : float
        For ReLU: the L0 above which a step runs on dense matmuls. None: what `trustbench tune`
        measured on this card, or dense.DENSE_ABOVE.
    """

    keeps_batch = True

    def __init__(
        self,
        sae: SAE,
        adam: AdamOptions | None = None,
        *,
        compute_dtype: torch.dtype = torch.bfloat16,
        graphs: GraphMemory | None = None,
        dense_above: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(sae, adam, **options)
        device = sae.W_enc.device
        self.compute_dtype = compute_dtype
        if dense_above is None:
            dense_above = dense.measured_crossover(device, sae.cfg.d_in, sae.cfg.d_sae)
        self.dense_above = dense_above
        # The scalars of Adam's kernels, and half the penalty's factor.
        self._sent = torch.zeros(COUNT + 1, device=device)
        self.scalars, self._half = self._sent[:COUNT], self._sent[COUNT]
        self.report = torch.zeros(6, device=device)
        self.report[_BAD_STEP] = -1
        self.l0 = float("inf")  # as last seen
        self.dead_count = 0  # as last seen; AuxK is on where it is not 0
        self.fits = torch.ones(1, dtype=torch.bool, device=device)  # the last step had room
        self._fits_seen = torch.ones(1, dtype=torch.bool, pin_memory=device.type == "cuda")
        self._seen = torch.cuda.Event() if device.type == "cuda" else None
        self._pending: Batch | None = None
        self.copies: tuple[Tensor, Tensor] | None = None
        self._graphs = graphs if self.shares.alone else None
        # For every shape of x: the sizes that were last run with, and their graph.
        self._captured: dict[tuple[int, ...], tuple[Any, torch.cuda.CUDAGraph | None]] = {}
        self._fired = torch.zeros(len(self.updated.b_enc), dtype=torch.int32, device=device)
        self.refresh_copies()

    def refresh_copies(self) -> None:
        """Copy the weights to where the kernels read them."""
        read = (self.weights.W_enc, self.weights.W_dec)
        if self.compute_dtype != torch.float32:
            fresh = [w.to(self.compute_dtype) for w in read]
            if self.copies is None:
                self.copies = (fresh[0], fresh[1])
            else:  # in place: captured graphs hold their addresses
                for copy, new in zip(self.copies, fresh, strict=True):
                    copy.copy_(new)
            read = self.copies
        self._view = View(
            self.sae, W_enc=read[0], W_dec=read[1], matmul_dtype=None, centred=self._centred,
            master_W_enc=self.weights.W_enc,
        )  # fmt: skip

    def _centred(self, x: Tensor) -> Tensor:
        return self.sae.centred(x).to(self.compute_dtype)

    @torch.no_grad()
    def step(
        self,
        x: Tensor,
        lr: float,
        *,
        target: Tensor | None = None,
        penalty_scale: float = 1.0,
        done: float = 0.0,
        measure: bool = False,
    ) -> StepResult | None:
        """See Step. Returns metrics only when `measure`.

        Raises NonFiniteError, when measuring, for any step since the last measurement whose loss was
        not finite. That step changed no weight.
        """
        self.finish_pending()
        if self.family.before is not None:
            self.family.before(self.sae, done)
        kind = self.compute_dtype
        wanted = None if target is None else self.sae.scaled_target(target, kind)
        batch = Batch(self.sae.scaled(x, kind), wanted, lr, penalty_scale)
        self.steps += 1
        self._send_scalars(batch)
        exact = not self._room_known
        if self._graphs is None or exact:
            self._run(batch.x, batch.target, exact=exact)
        else:
            self._replay(batch.x, batch.target)
        if self._takes_room and not exact:
            self._pending = batch
            self._fits_seen.copy_(self.fits, non_blocking=True)
            if self._seen is not None:
                self._seen.record()
        return self._measured(batch) if measure else None

    def finish_pending(self) -> None:
        """Do the last step again if there was too little room for it."""
        if self._pending is None:
            return
        batch, self._pending = self._pending, None
        if self._seen is not None:
            self._seen.synchronize()
        if not bool(self._fits_seen):
            self._send_scalars(batch)
            self._run(batch.x, batch.target, exact=True)

    def _send_scalars(self, batch: Batch) -> None:
        a, N, half = self.adam, len(batch.x), batch.penalty_scale / 2
        # The penalty's gradient is scaled by 2 / N with the rest.
        slope = half * self.family.coefficient(self.sae.cfg)
        sent = step_scalars(self.steps, batch.lr, a.beta1, a.beta2, scale=2 / N, slope=slope)
        sent = torch.cat([sent, torch.tensor([half])])
        if self._sent.is_cuda:
            sent = sent.pin_memory()
        self._sent.copy_(sent, non_blocking=True)

    # ---------------------------------------------------------------- sizes

    @property
    def dense(self) -> bool:
        """Whether the next step runs on dense matmuls."""
        return self.family.dense and self.shares.alone and self.l0 > self.dense_above

    @property
    def _auxk(self) -> bool:
        return self.dead_count > 0 and self.sae.cfg.auxk_features > 0

    @property
    def _sparse(self) -> bool:
        """Whether the next step has a code of a size that only the data tells."""
        return self.family.entries == "data" and not self.dense

    @property
    def _takes_room(self) -> bool:
        """Whether the next step guesses sizes."""
        guesses = self._sparse or self.family.entries == "batch" or self._auxk
        return guesses and self.shares.alone

    @property
    def _room_known(self) -> bool:
        return self.shares.alone and (not self._sparse or math.isfinite(self.l0))

    def entries(self, N: int) -> int:
        """How many entries a code of unknown size has room for; 0 for other codes."""
        return min(N * room(self.l0), N * self.sae.cfg.d_sae) if self._sparse else 0

    def _how(self, N: int, exact: bool) -> How:
        dead = self.dead if self._auxk else None
        if exact:
            return How(None, torch.float32, dead=dead)
        dead_room = min(room(self.dead_count), self.sae.cfg.d_sae)
        return How(self.entries(N), torch.float32, dead=dead, dead_room=dead_room)

    # ---------------------------------------------------------------- the step

    def _replay(self, x: Tensor, target: Tensor | None) -> None:
        assert self._graphs is not None
        sizes = (self.dense, self.entries(len(x)), self._auxk and room(self.dead_count))
        known, graph = self._captured.get(x.shape, (None, None))
        if known != sizes:  # the first run compiles what it needs
            self._captured[x.shape] = sizes, None
            self._run(x, target)
            return
        held = []
        for role, tensor in (("x", x), ("target", target)):
            held.append(None if tensor is None else self._graphs.input_like(role, tensor))
            if tensor is not None:
                held[-1].copy_(tensor)  # type: ignore[union-attr]
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._graphs.pool):
                self._run(*held)  # type: ignore[arg-type]
            self._captured[x.shape] = sizes, graph
        graph.replay()

    def _run(self, x: Tensor, target: Tensor | None, *, exact: bool = False) -> None:
        """Everything that a graph may hold: from scaled activations to new weights.

        What changes from step to step is read from the scalars, on the device. exact: ask the device
        for sizes, instead of taking room.
        """
        self.fits.fill_(True)
        y = x if target is None else target
        if self.sae.W_skip is not None:
            y = (y.float() - self.sae.skipped(x.float())).to(y.dtype)
        with ops.use("triton"), ops.trusted():
            if self.dense:
                self._run_dense(x, y)
            else:
                how = self._how(len(x), exact)
                terms = self.shares.terms(self.family, self._view, x, y, how)
                if exact and self._sparse:
                    self.l0 = terms.code.values.numel() / len(x)
                if exact and how.dead is not None:
                    self.dead_count = int(how.dead.sum())
                self._run_sparse(x, terms)

    def _run_dense(self, x: Tensor, y: Tensor) -> None:
        cfg, W = self.sae.cfg, self.weights
        form = self.family.decoder_norm(cfg)
        found = dense.terms(self._view, self._centred(x), y, self.scalars[SLOPE], form)
        self.scalars[LOSS] = found.mse + found.penalty
        small = self._small_gradients(found.error, x, found.through_x, {})
        if self.adam.clip_norm:
            squares = dense.squared_norm(found.gradients, W.W_dec, cfg.unit_norm)
            self._clip(squares + sum(g.square().sum() for g in small.values()))
        adam = self._adam_arguments()
        copy_enc, copy_dec = self.copies or (None, None)
        m, g = self.moments, found.gradients
        ops.adam_(W.W_enc, g.W_enc, m.m_W_enc, m.v_W_enc, copy=copy_enc, **adam)
        on_sphere = adam | {"unit_norm": cfg.unit_norm}
        ops.adam_(W.W_dec, g.W_dec, m.m_W_dec, m.v_W_dec, copy=copy_dec, **on_sphere)
        flat = [t.view(1, -1) for t in (W.b_enc, g.b_enc, m.m_b_enc, m.v_b_enc)]
        ops.adam_(*flat, **adam)
        self._update_small(small)
        none = torch.zeros_like(found.mse)
        self._finish(len(x), (found.mse, none, found.mse), found.fired.sum(), found.fired)

    def _run_sparse(self, x: Tensor, terms: Terms) -> None:
        cfg, N, family = self.sae.cfg, len(x), self.family
        mse = terms.squared.sum() / N
        auxk, added = torch.zeros_like(mse), torch.zeros_like(mse)
        penalty: Penalty | None = None
        if family.penalty is not None:
            penalty = family.penalty(self._view, terms, self._half)
            added = 2 * self.scalars[SLOPE] * penalty.total / N
        if terms.auxk is not None:
            auxk = terms.auxk.residual.float().square().sum() / N
            auxk = auxk if terms.any_dead is None else auxk * terms.any_dead
        loss = mse + added + cfg.auxk_coefficient * auxk
        if terms.fits is not None:
            self.fits.copy_(terms.fits)
            loss = torch.where(terms.fits[0], loss, float("nan"))
        self.scalars[LOSS] = loss  # the kernels change nothing where it is not finite

        parts = [terms.main] if terms.auxk is None else [terms.main, terms.auxk]
        values, indices, rows = joined_entries(parts)
        grads = [p.residual if p.weight == 1.0 else p.residual * p.weight for p in parts]
        sources = [repeated(self._centred(x), part) for part in parts]
        kept = values if rows is not None else None
        if penalty is not None and penalty.own:  # also of entries of value 0, which the code holds
            kept = held(terms.code)
        whole = ops.transpose_code(indices, cfg.d_sae, rows=rows, values=kept)
        own = {} if penalty is None else penalty.own
        small = {name: feature_sums(entries, whole) for name, entries in own.items()}
        push = None
        if penalty is not None and penalty.push is not None:
            push = self.shares.entries_of(penalty.push * self.scalars[SLOPE], whole)
        values, by_feature = self.shares.by_feature(values, whole)
        shared: dict[str, Any] = {
            "unit_norm": cfg.unit_norm, "scalars": self.scalars, "push": push,
            "l1_form": "decoder_norm" if family.decoder_norm(cfg) else "sum",
        }  # fmt: skip
        inputs = (values, by_feature, torch.cat(sources), torch.cat(grads))
        if len(parts) == 1:
            inputs = (values, by_feature, sources[0], grads[0])
        if self.adam.clip_norm:
            norm, through_x = ops.sparse_grad_norm(self.updated, *inputs, **shared)
            squares, through_x = self._summed(norm, through_x)
            full = self._small_gradients(terms.bias, x, through_x, small)
            self._clip(squares + sum(g.square().sum() for g in full.values()))
        through_x = ops.sparse_adam_(
            self.updated, *inputs, self.moments, fired=self._fired, copies=self._my_copies(),
            beta1=self.adam.beta1, beta2=self.adam.beta2, eps=self.adam.eps, **shared,
        )  # fmt: skip
        through_x = self._summed(torch.zeros_like(mse), through_x)[1]
        self._update_small(self._small_gradients(terms.bias, x, through_x, small))
        self.shares.share(self.weights)
        self.shares.share(self.copies or ())
        fired = self.shares.whole(self._fired)
        left = mse  # of the whole reconstruction; a nested one's loss is a mean over its prefixes
        if terms.main.residual is not terms.error:
            left = terms.error.float().square().sum() / N
        self._finish(N, (mse, auxk, left), (terms.code.values > 0).sum(), fired)
        if family.after is not None:
            family.after(self.sae, torch.where(self.fits, terms.code.values.flatten(), 0.0))

    def _small_gradients(
        self, bias: Tensor, x: Tensor, through_x: Tensor, own: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Of the parameters that sparse_adam_ does not own, in units of 2 / N."""
        b_dec = bias.sum(0, dtype=torch.float32)
        small = {"b_dec": b_dec if self.sae.cfg.transcoder else b_dec + through_x, **own}
        if self.sae.W_skip is not None:
            small["W_skip"] = (bias.float().T @ x.float()).flatten()
        return small

    def _update_small(self, gradients: dict[str, Tensor]) -> None:
        for name, grad in gradients.items():
            self.adam_update(name, grad, **self._adam_arguments())

    def _adam_arguments(self) -> dict[str, Any]:
        a = self.adam
        return {"scalars": self.scalars, "beta1": a.beta1, "beta2": a.beta2, "eps": a.eps}

    def _my_copies(self) -> tuple[Tensor, Tensor] | None:
        if self.copies is None:
            return None
        enc, dec = (copy[self.shares.features] for copy in self.copies)
        return enc, dec

    def _summed(self, squared: Tensor, through_x: Tensor) -> tuple[Any, Tensor]:
        if self.shares.alone:
            return squared, through_x
        return self.shares.summed(float(squared), through_x)

    def _clip(self, squared_norm: Tensor) -> None:
        """Reduce this step's scale so that the gradient's global norm is at most clip_norm."""
        scale = self.scalars[SCALE]
        norm = scale * squared_norm.sqrt()
        self.scalars[SCALE] = scale * (self.adam.clip_norm / (norm + 1e-6)).clamp(max=1.0)

    def _finish(
        self, N: int, losses: tuple[Tensor, Tensor, Tensor], active: Tensor, fired: Tensor
    ) -> None:
        """Report (mse, auxk, squared error) a token, entries > 0, and these of every feature."""
        mse, auxk, left = losses
        # A step without room has not been.
        since = torch.where(fired > 0, 0, self.inactive + N)
        self.inactive.copy_(torch.where(self.fits, since, self.inactive))
        total = self.scalars[LOSS]
        bad = self.report[_BAD_STEP]
        now_bad = (bad < 0) & ~torch.isfinite(total) & self.fits[0]
        bad = torch.where(now_bad, self.scalars[NUMBER], bad)
        self.report.copy_(torch.stack([total, mse, auxk, active / N, left, bad]))

    def _measured(self, batch: Batch) -> StepResult:
        self.finish_pending()
        y = batch.x if batch.target is None else batch.target
        variance = torch.var(y.float(), dim=0, correction=0).sum()
        dead = self.dead.float().mean()
        host = torch.cat([self.report, variance[None], dead[None]]).tolist()
        total, mse, auxk, l0, left, bad_step, spread, dead_fraction = host
        if bad_step >= 0:
            self.report[_BAD_STEP] = -1
            raise self.not_finite_at(bad_step)
        self.l0, self.dead_count = l0, round(dead_fraction * self.sae.cfg.d_sae)
        fvu = left / spread if spread else float("nan")
        return StepResult(total, mse, auxk, fvu=fvu, l0=l0, dead_fraction=dead_fraction)

    def own_state(self) -> dict[str, Tensor]:
        """See Step."""
        self.finish_pending()
        seen = torch.tensor([self.l0, float(self.dead_count)])
        return super().own_state() | {"seen": seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See Step."""
        super().load_state_dict(state)
        self.l0, self.dead_count = float(state["seen"][0]), int(state["seen"][1])
        self.refresh_copies()
