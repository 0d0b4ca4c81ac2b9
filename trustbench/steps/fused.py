"""FusedStep: the gradients of the big matrices never exist ("way 2").

    encode -> decode, residual, loss -> AuxK -> transpose the code -> gradients straight into Adam

It equals `trustbench.sae.loss` with torch.optim.Adam, the projected gradient and the renormalised
decoder, step after step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustbench import ops
from trustbench.ops import FeatureCode
from trustbench.sae.families.base import How, Part, Penalty, Terms
from trustbench.sae.stats import fvu
from trustbench.steps.base import Step, StepResult


class FusedStep(Step):
    """A step that the host follows: on CPUs, where nothing waits for a device. See Step."""

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
    ) -> StepResult:
        """See Step."""
        self.steps += 1
        sae, N = self.sae, len(x)
        if self.family.before is not None:
            self.family.before(sae, done)
        wanted = sae.scaled_target(x if target is None else target)
        x = sae.scaled(x)
        y = wanted if sae.W_skip is None else wanted - sae.skipped(x)
        dead = self.dead if sae.cfg.auxk_features else None
        with ops.trusted():
            terms = self.shares.terms(self.family, sae, x, y, How(dead=dead))
            losses = self._update(terms, x, lr, penalty_scale)
        active = self.record_activity(terms.code.values, terms.code.indices, N)
        if not measure:
            return StepResult(*losses)
        l0 = active.sum().item() / N
        dead_fraction = self.dead.float().mean().item()
        explained = fvu(wanted, wanted + terms.error).item()
        return StepResult(*losses, fvu=explained, l0=l0, dead_fraction=dead_fraction)

    def _update(
        self, terms: Terms, x: Tensor, lr: float, penalty_scale: float
    ) -> tuple[float, float, float]:
        """Adam on everything; (loss, mse, auxk)."""
        sae, cfg, N, family = self.sae, self.sae.cfg, len(x), self.family
        mse = terms.squared.sum().item() / N
        auxk = 0.0 if terms.auxk is None else terms.auxk.residual.square().sum().item() / N
        weight = penalty_scale * family.coefficient(cfg) / N
        penalty, size = None, 0.0
        if family.penalty is not None:
            penalty = family.penalty(sae, terms, penalty_scale / 2)
            size = weight * penalty.total.item()
        total = mse + size + cfg.auxk_coefficient * auxk
        self.check_loss(total)

        values, whole, grads = _joined(terms, cfg.d_sae, N)
        sources = _sources(sae.centred(x), terms)
        push = None if penalty is None or penalty.push is None else weight * penalty.push
        form = "decoder_norm" if family.decoder_norm(cfg) else "sum"
        linear = weight if penalty is not None and push is None else 0.0
        shared: dict[str, Any] = {"unit_norm": cfg.unit_norm, "l1": linear, "l1_form": form}
        shared["push"] = self.shares.entries_of(push, whole)
        values, by_feature = self.shares.by_feature(values, whole)
        main = terms.bias is terms.main.residual
        bias = grads[:N] if main else terms.bias * (2 / N)
        small = {"b_dec": bias.sum(0), **_own_gradients(penalty, whole, N)}
        if sae.W_skip is not None:
            small["W_skip"] = (bias.T @ x).flatten()

        scale = 1.0
        if self.adam.clip_norm:
            norm, through_x = ops.sparse_grad_norm(
                self.updated, values, by_feature, sources, grads, **shared
            )
            squared, through_x = self.shares.summed(norm.item(), through_x)
            full = small | {"b_dec": self._with_input(small["b_dec"], through_x)}
            scale = self.clip_scale(squared + sum(g.square().sum().item() for g in full.values()))
        adam = self.adam_options(lr)
        through_x = ops.sparse_adam_(
            self.updated, values, by_feature, sources, grads, self.moments,
            clip_scale=scale, **shared, **adam,
        )  # fmt: skip
        small["b_dec"] = self._with_input(small["b_dec"], self.shares.summed(0.0, through_x)[1])
        for name, grad in small.items():
            self.adam_update(name, scale * grad, **adam)
        if family.after is not None:
            family.after(sae, terms.code.values)
        self.shares.share(self.weights)
        return total, mse, auxk

    def _with_input(self, grad: Tensor, through_x: Tensor) -> Tensor:
        """The gradient of b_dec, with what comes through the encoder's input."""
        return grad if self.sae.cfg.transcoder else grad + through_x


def _joined(terms: Terms, F: int, N: int) -> tuple[Tensor, FeatureCode, Tensor]:
    """(values, entries by feature, dL/dx_hat of the rows) of all parts."""
    main, aux = terms.main, terms.auxk
    values, indices, offsets = main.code.values, main.code.indices, main.code.row_offsets
    grads = main.residual * (2 * main.weight / N)
    if aux is not None:
        # AuxK's entries join the code with rows of their own, behind the others.
        ends = _offsets(aux.code)[1:] + indices.numel()
        offsets = torch.cat([_offsets(main.code), ends])
        values = torch.cat([values.flatten(), aux.code.values.flatten()])
        indices = torch.cat([indices.flatten(), aux.code.indices.flatten()])
        grads = torch.cat([grads, aux.residual * (2 * aux.weight / N)])
    return values, ops.transpose_code(indices, F, offsets), grads


def _sources(centred: Tensor, terms: Terms) -> Tensor:
    """The encoder's input of every row that entries point at."""
    parts = [terms.main] if terms.auxk is None else [terms.main, terms.auxk]
    rows = [repeated(centred, part) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def repeated(centred: Tensor, part: Part) -> Tensor:
    """The encoder's input of a part's rows."""
    return centred if part.repeat == 1 else centred.repeat_interleave(part.repeat, 0)


def _own_gradients(penalty: Penalty | None, whole: FeatureCode, N: int) -> dict[str, Tensor]:
    """Gradients of the family's own parameters [F]."""
    own = {} if penalty is None else penalty.own
    return {name: feature_sums(entries, whole) * (2 / N) for name, entries in own.items()}


def feature_sums(entries: Tensor, whole: FeatureCode) -> Tensor:
    """[F]: sums over each feature's entries, in their order."""
    flat = entries.flatten()
    # What lies behind the last feature's entries means nothing, and is in no segment.
    ordered = flat[whole.positions.long().clamp(0, max(len(flat) - 1, 0))]
    return torch.segment_reduce(ordered, "sum", offsets=whole.feature_offsets, unsafe=True)


def _offsets(code: Any) -> Tensor:
    if code.row_offsets is not None:
        return code.row_offsets
    n, k = code.values.shape
    return torch.arange(n + 1, device=code.values.device) * k
