"""One SAE's training step on several processes: tokens are encoded, features are updated, in shares.

    every rank:  its rows of the batch -> code, residual
    all ranks:   the codes and residuals of all rows (k (4 + 4) + 4 d bytes a token)
    every rank:  its features' gradients, from all rows, straight into Adam
    all ranks:   the new weights

Gradients are neither written nor summed over ranks, Adam's moments exist once in the whole team, and
every feature's sums run over the same tokens in the same order as on one process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trustbench import ops
from trustbench.errors import bad
from trustbench.ops import Code, CSRCode, TopKCode
from trustbench.ops.codes import FeatureCode
from trustbench.ops.sparse_adam import Moments, Weights
from trustbench.sae import SAE
from trustbench.sae.losses import auxk_code
from trustbench.steps.batchtopk_shares import encode_share
from trustbench.steps.fused import AdamOptions, LayerTrainer
from trustbench.team import Team


class ShardedTrainer(LayerTrainer):
    """A LayerTrainer that the ranks of a team share; each calls `step` with the whole batch.

    JumpReLU, whose gradients exist anyway, sums them over the ranks.

    Parameters
    ----------
    sae : SAE
        The same on every rank, and so it stays.
    adam, options
        As for LayerTrainer.
    team : Team
    """

    def __init__(
        self, sae: SAE, adam: AdamOptions | None = None, *, team: Team, **options: Any
    ) -> None:
        F = sae.cfg.d_sae
        if team.size > F:
            raise bad("parallel", f"tokens, on {team.size} processes", f"at most d_sae={F}")
        self.team = team
        ends = [team.share(F, rank).stop for rank in range(team.size)]
        whole = sae.cfg.activation == "jumprelu"
        self.features = slice(0, F) if whole else team.share(F)
        self.feature_ends = ends
        super().__init__(sae, adam, **options)

    def _updated(self) -> Weights:
        return Weights(*(w[self.features] for w in self.weights))

    # ---------------------------------------------------------------- rows in shares

    def _divided(self, x: Tensor) -> bool:
        """Whether there is a row for everyone; if not, all do all of it."""
        return len(x) >= self.team.size

    def _rows(self, n: int) -> tuple[slice, list[int]]:
        """This rank's rows of n, and how many every rank has."""
        shares = [self.team.share(n, rank) for rank in range(self.team.size)]
        return shares[self.team.rank], [share.stop - share.start for share in shares]

    def _reconstructed(self, x: Tensor) -> tuple[Code, Tensor, Tensor]:
        if not self._divided(x):
            return super()._reconstructed(x)
        mine, counts = self._rows(len(x))
        if self.sae.cfg.activation == "batchtopk":
            part: Code = encode_share(self.sae, x[mine], self.sae.cfg.k * len(x), self.team)
        else:
            part = self.sae.encode_scaled(x[mine])
        error, squared = self.sae.reconstruct_scaled(part, x[mine])
        error, squared = (self.team.joined(t, counts) for t in (error, squared))
        return self._joined_code(part, counts), error, squared

    def _joined_code(self, part: Code, counts: list[int]) -> Code:
        """The code of all rows."""
        if isinstance(part, TopKCode):
            return TopKCode(*(self.team.joined(t, counts) for t in part))
        entries = self.team.joined(part.row_offsets.diff(), counts)
        offsets = entries.new_zeros(len(entries) + 1)
        offsets[1:] = entries.cumsum(0)
        each = [int(n.sum()) for n in entries.split(counts)]
        values, indices = (self.team.joined(t, each) for t in (part.values, part.indices))
        return CSRCode(offsets, indices, values)

    def _auxk_residual(self, x: Tensor, error: Tensor) -> tuple[TopKCode, Tensor] | None:
        if not self._divided(x):
            return super()._auxk_residual(x, error)
        mine, counts = self._rows(len(x))
        part = auxk_code(self.sae, x[mine], self.dead)
        if part is None:  # on all ranks: they count the same
            return None
        residual = ops.decode(part.values, part.indices, self.sae.W_dec) + error[mine]
        joined = (self.team.joined(t, counts) for t in (part.values, part.indices, residual))
        values, indices, residual = joined
        return TopKCode(values, indices), residual

    # ---------------------------------------------------------------- features in shares

    def _by_feature(
        self, values: Tensor, indices: Tensor, offsets: Tensor | None
    ) -> tuple[Tensor, FeatureCode]:
        whole = ops.transpose_code(indices, self.sae.cfg.d_sae, offsets)
        edges = whole.feature_offsets[self.features.start : self.features.stop + 1]
        first, last = edges[[0, -1]].tolist()
        positions = whole.positions[first:last]
        places = torch.arange(last - first, dtype=torch.int32, device=positions.device)
        code = FeatureCode((edges - first).contiguous(), whole.rows[first:last].contiguous(), places)
        return values.flatten()[positions.long()], code

    def _summed(self, squared: float, through_x: Tensor) -> tuple[float, Tensor]:
        # In the order of ranks, so that all of them get the same bits.
        mine = torch.cat([through_x.double(), through_x.new_tensor([squared], dtype=torch.float64)])
        total = self.team.joined(mine[None], [1] * self.team.size).sum(0)
        return float(total[-1]), total[:-1].to(through_x.dtype)

    def _share_weights(self) -> None:
        for weight in self.weights:
            self.team.fill(weight, self.feature_ends)

    # ---------------------------------------------------------------- JumpReLU

    def _backward(self, x: Tensor, sparsity: float) -> tuple[Code, Tensor, float, float]:
        if not self._divided(x):
            return super()._backward(x, sparsity)
        mine, counts = self._rows(len(x))
        code, error, total, mse = super()._backward(x[mine], sparsity)
        weight = len(x[mine]) / len(x)  # means over rows become shares of the mean over all
        for parameter in self._parameters():
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = self.team.sum_(grad.mul_(weight))
        figures = torch.tensor([[total * weight, mse * weight]], dtype=torch.float64)
        sums = self.team.joined(figures.to(x.device), [1] * self.team.size).sum(0).tolist()
        return self._joined_code(code, counts), self.team.joined(error, counts), *sums

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, whole, on every rank."""
        state = super().state_dict()
        if self.features.stop - self.features.start < self.sae.cfg.d_sae:
            counts = [b - a for a, b in zip([0, *self.feature_ends], self.feature_ends, strict=False)]
            for name in Moments._fields:
                state[f"adam.{name}"] = self.team.joined(state[f"adam.{name}"], counts)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict`, written by any number of processes."""
        ours = {f"adam.{name}" for name in Moments._fields}
        super().load_state_dict(
            {
                name: tensor[self.features] if name in ours else tensor
                for name, tensor in state.items()
            }
        )
