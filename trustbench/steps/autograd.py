"""AutogradStep: a family's loss through autograd, over the sparse ops, with dense gradients and Adam.

For families whose gradients the fused step does not have. Several processes compute the gradients of
their rows and sum them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustbench import ops
from trustbench.sae.stats import fvu
from trustbench.steps.base import Step, StepResult


class AutogradStep(Step):
    """A step of any family. See Step."""

    def updates_all_features(self) -> bool:
        """Gradients exist on every process anyway."""
        return True

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
        sae = self.sae
        if self.family.before is not None:
            self.family.before(sae, done)
        sae.zero_grad(set_to_none=True)
        wanted, x = sae.scaled_target(x if target is None else target), sae.scaled(x)
        values, indices, error, total, mse, auxk = self._backward(x, wanted, penalty_scale)
        self.check_loss(total)
        self._apply(lr)
        sae.zero_grad(set_to_none=True)
        if self.family.after is not None:
            self.family.after(sae, values)
        active = self.record_activity(values, indices, len(x))
        losses = (total, mse, auxk)
        if not measure:
            return StepResult(*losses)
        l0 = active.sum().item() / len(x)
        dead = self.dead.float().mean().item()
        explained = fvu(wanted, wanted + error).item()
        return StepResult(*losses, fvu=explained, l0=l0, dead_fraction=dead)

    def _backward(
        self, x: Tensor, wanted: Tensor, penalty_scale: float
    ) -> tuple[Tensor, Tensor, Tensor, float, float, float]:
        """Leave the gradients in the parameters; (values, indices, error, loss, mse, auxk)."""
        divided = self.shares.rows(len(x))
        mine = slice(0, len(x)) if divided is None else divided[0]
        rows, y = x[mine], wanted[mine]
        sae = self.sae
        dead = self.dead if sae.cfg.auxk_features else None
        y = y if sae.W_skip is None else y - sae.skipped(rows)
        terms = self.family.objective(sae, rows, y, dead)
        total = terms.total + (penalty_scale - 1) * terms.penalty
        total.backward()
        values, indices = terms.code.values.detach().flatten(), terms.code.indices.flatten()
        error = (terms.x_hat - y).detach()
        losses = torch.stack([total, terms.mse, terms.auxk]).detach().double()
        if divided is None:
            return values, indices, error, *losses.tolist()
        team, counts = self.shares.team, divided[1]
        weight = len(rows) / len(x)  # means over rows become shares of the mean over all
        for parameter in sae.parameters():
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = team.sum_(grad.mul_(weight))
        sums = team.joined(weight * losses[None], [1] * team.size).sum(0).tolist()
        size = torch.tensor([len(values)], device=x.device)
        each = team.joined(size, [1] * team.size).tolist()
        values, indices = team.joined(values, each), team.joined(indices, each)
        return values, indices, team.joined(error, counts), *sums

    @torch.no_grad()
    def _apply(self, lr: float) -> None:
        """Adam on every parameter."""
        sae = self.sae
        if sae.cfg.unit_norm:
            sae.project_decoder_grad_()
        grads = {
            name: p.grad if p.grad is not None else torch.zeros_like(p)
            for name, p in sae.named_parameters()
        }
        scale = 1.0
        if self.adam.clip_norm:
            scale = self.clip_scale(sum(float(g.square().sum()) for g in grads.values()))
        adam: dict[str, Any] = self.adam_options(lr)
        big = dict(zip(("W_enc", "W_dec", "b_enc"), self.weights, strict=True))
        for name, grad in grads.items():
            if name not in big:
                self.adam_update(name, scale * grad, **adam)
                continue
            moments = [getattr(self.moments, f"{kind}_{name}") for kind in "mv"]
            flat = big[name].view(-1, grad.shape[-1])
            m, v = (moment.view_as(flat) for moment in moments)
            on_sphere = sae.cfg.unit_norm and name == "W_dec"
            ops.adam_(flat, (scale * grad).view_as(flat), m, v, unit_norm=on_sphere, **adam)
