"""One SAE's training step, fused ("way 2"): the gradients of the big matrices never exist.

    encode -> decode, residual, loss -> AuxK -> transpose the code -> gradients straight into Adam

It equals `trustbench.sae.loss` with torch.optim.Adam, the projected gradient and the renormalised
decoder, step after step. JumpReLU, whose thresholds need their own gradient, goes through autograd.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from trustbench import ops
from trustbench.defaults import BETA1, BETA2, DEAD_AFTER_TOKENS, EPS
from trustbench.errors import NonFiniteError
from trustbench.ops import Code, TopKCode
from trustbench.ops.codes import FeatureCode
from trustbench.ops.sparse_adam import Moments, Weights
from trustbench.sae import SAE, loss
from trustbench.sae.losses import auxk_code
from trustbench.sae.stats import fvu

# BatchTopK's inference threshold is a running mean over about ten batches: each batch's own value
# is an order statistic of thousands of entries, and the weights still move.
_THRESHOLD_DECAY = 0.9


class AdamOptions(NamedTuple):
    """Adam's constants, and the clipping norm (0: off)."""

    beta1: float = BETA1
    beta2: float = BETA2
    eps: float = EPS
    clip_norm: float = 0.0


class StepResult(NamedTuple):
    """One step's figures, in scaled space; `fvu`, `l0` and `dead_fraction` when asked for."""

    loss: float
    mse: float
    auxk: float
    fvu: float | None = None
    l0: float | None = None
    dead_fraction: float | None = None


class LayerTrainer:
    """An SAE with its optimiser state and its record of when each feature last fired.

    Parameters
    ----------
    sae : SAE, fp32
    adam : AdamOptions
    dead_after_tokens : int
        A feature is dead when it was inactive for this many tokens.
    name : str
        The hook point, for error messages.
    moment_dtype : torch.dtype
        fp32, or bf16 (rounded by chance, right in the mean) where the step runs on Triton kernels.
    """

    def __init__(
        self,
        sae: SAE,
        adam: AdamOptions | None = None,
        *,
        dead_after_tokens: int = DEAD_AFTER_TOKENS,
        name: str = "",
        moment_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.sae, self.name, self.dead_after = sae.train(), name, dead_after_tokens
        self.adam = adam or AdamOptions()
        self.steps = 0
        device = sae.W_enc.device
        # Tokens since each feature was last active.
        self.inactive = torch.zeros(sae.cfg.d_sae, dtype=torch.int64, device=device)
        self.weights = Weights(sae.W_enc.data, sae.W_dec.data, sae.b_enc.data)
        self.moments = Moments.zeros_like(self._updated(), moment_dtype)
        # m and v of the one-dimensional parameters that sparse_adam_ does not own.
        small = [sae.b_dec] + ([sae.log_threshold] if sae.cfg.activation == "jumprelu" else [])
        self.small = [p.data.view(1, -1) for p in small]
        self.small_moments = [torch.zeros_like(p) for p in self.small for _ in range(2)]

    @property
    def dead(self) -> Tensor:
        """Which features are dead now, bool [F]."""
        return self.inactive >= self.dead_after

    def _updated(self) -> Weights:
        """The weights that this process updates."""
        return self.weights

    def weights_changed(self) -> None:
        """To be called when something else has changed the weights: here nothing depends on them."""

    def settle(self) -> None:
        """To be called before the weights are read: here no step is ever unfinished."""

    def step(
        self, x: Tensor, lr: float, *, sparsity: float = 1.0, measure: bool = False
    ) -> StepResult | None:
        """Train on activations x [N, d] as the model gives them.

        `sparsity` multiplies the L1 or L0 coefficient. Raises NonFiniteError, before any weight is
        changed, when the loss is not finite.
        """
        self.steps += 1
        if self.sae.cfg.activation == "jumprelu":
            x = self.sae.scaled(x)
            code, error, figures = self._autograd_step(x, lr, sparsity)
        else:
            with torch.no_grad():
                x = self.sae.scaled(x)
                code, error, figures = self._fused_step(x, lr, sparsity)
        self.inactive += len(x)
        active = code.values.flatten() > 0
        self.inactive[code.indices.flatten()[active].long()] = 0
        if not measure:
            return StepResult(*figures)
        l0 = active.sum().item() / len(x)
        dead = self.dead.float().mean().item()
        return StepResult(*figures, fvu=fvu(x, x + error).item(), l0=l0, dead_fraction=dead)

    def _fused_step(
        self, x: Tensor, lr: float, sparsity: float
    ) -> tuple[Code, Tensor, tuple[float, float, float]]:
        sae, cfg, N = self.sae, self.sae.cfg, len(x)
        code, error, squared = self._reconstructed(x)
        mse = squared.sum().item() / N
        grad = error * (2 / N)
        centred = x - sae.b_dec

        values, indices, offsets = code.values, code.indices, code.row_offsets
        sources, grads = centred, grad
        auxk = penalty = 0.0
        found = self._auxk_residual(x, error) if cfg.auxk_features else None
        if found is not None:
            # AuxK's entries join the code as rows N .. 2N of their own.
            aux, aux_error = found
            auxk = aux_error.square().sum().item() / N
            offsets = torch.cat([_offsets(code), _offsets(aux)[1:] + indices.numel()])
            values = torch.cat([values.flatten(), aux.values.flatten()])
            indices = torch.cat([indices.flatten(), aux.indices.flatten()])
            sources = torch.cat([centred, centred])
            grads = torch.cat([grad, aux_error * (2 * cfg.auxk_coefficient / N)])
        l1 = sparsity * cfg.l1_coefficient / N if cfg.activation == "relu" else 0.0
        if l1:
            norms = sae.W_dec.norm(dim=1)[indices.long()] if cfg.l1_form == "decoder_norm" else 1.0
            penalty = l1 * (values * norms).sum().item()
        total = mse + penalty + cfg.auxk_coefficient * auxk
        self._check(total)

        values, by_feature = self._by_feature(values, indices, offsets)
        shared: dict[str, Any] = {"unit_norm": cfg.unit_norm, "l1": l1, "l1_form": cfg.l1_form}
        b_dec_grad = grad.sum(0)
        scale = 1.0
        if self.adam.clip_norm:
            squared_norm, through_x = self._summed(
                *ops.sparse_grad_norm(self._updated(), values, by_feature, sources, grads, **shared)
            )
            scale = self._clip_scale(squared_norm + (b_dec_grad + through_x).square().sum().item())
        adam = self._adam_arguments(lr)
        through_x = ops.sparse_adam_(
            self._updated(), values, by_feature, sources, grads, self.moments,
            clip_scale=scale, **shared, **adam,
        )  # fmt: skip
        b_dec_grad = scale * (b_dec_grad + self._summed(0.0, through_x)[1])
        ops.adam_(self.small[0], b_dec_grad.view(1, -1), *self.small_moments[:2], **adam)
        if cfg.activation == "batchtopk":
            self._update_threshold(code.values)
        self._share_weights()
        return code, error, (total, mse, auxk)

    # What a step on one process does here, several divide among them: see sharded_step.py.

    def _reconstructed(self, x: Tensor) -> tuple[Code, Tensor, Tensor]:
        """The code of x, x_hat - x, and its squared norms."""
        code = self.sae.encode_scaled(x)
        return code, *self.sae.reconstruct_scaled(code, x)

    def _auxk_residual(self, x: Tensor, error: Tensor) -> tuple[TopKCode, Tensor] | None:
        """AuxK's code, and e_hat - (x - x_hat)."""
        aux = auxk_code(self.sae, x, self.dead)
        if aux is None:
            return None
        return aux, ops.decode(aux.values, aux.indices, self.sae.W_dec) + error

    def _by_feature(
        self, values: Tensor, indices: Tensor, offsets: Tensor | None
    ) -> tuple[Tensor, FeatureCode]:
        """The code's values, and its entries grouped by the features that this process updates."""
        return values, ops.transpose_code(indices, self.sae.cfg.d_sae, offsets)

    def _summed(self, squared: float, through_x: Tensor) -> tuple[float, Tensor]:
        """What the updates of all features give together."""
        return squared, through_x

    def _share_weights(self) -> None:
        """To be called when the weights that this process updates are new."""

    def _autograd_step(
        self, x: Tensor, lr: float, sparsity: float
    ) -> tuple[Code, Tensor, tuple[float, float, float]]:
        sae = self.sae
        sae.zero_grad(set_to_none=True)
        code, error, total, mse = self._backward(x, sparsity)
        self._check(total)
        if sae.cfg.unit_norm:
            sae.project_decoder_grad_()
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters()]
        squared = sum(float(g.square().sum()) for g in grads)
        scale = self._clip_scale(squared) if self.adam.clip_norm else 1.0
        moments = [*self.moments, *self.small_moments]
        for i, parameter in enumerate(self._parameters()):
            flat = parameter.data.view(-1, parameter.shape[-1])
            m, v = (moment.view_as(flat) for moment in moments[2 * i : 2 * i + 2])
            ops.adam_(
                flat,
                (scale * grads[i]).view_as(flat),
                m,
                v,
                unit_norm=sae.cfg.unit_norm and parameter is sae.W_dec,
                **self._adam_arguments(lr),
            )
        sae.zero_grad(set_to_none=True)
        return code, error, (total, mse, 0.0)

    def _parameters(self) -> list[Tensor]:
        """In the order of the moments."""
        sae = self.sae
        return [sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec, sae.log_threshold]

    def _backward(self, x: Tensor, sparsity: float) -> tuple[Code, Tensor, float, float]:
        """Leave the gradients in the parameters; the code, x_hat - x, the loss and its mse."""
        sae = self.sae
        terms = loss(sae, x / sae.input_scale if sae.cfg.normalize != "none" else x)
        total = terms.mse + sparsity * terms.penalty
        total.backward()
        code = terms.code._replace(values=terms.code.values.detach())
        return code, terms.x_hat.detach() - x, total.item(), terms.mse.item()

    def _check(self, total: float) -> None:
        if total != total or total in (float("inf"), float("-inf")):
            raise NonFiniteError(
                f"{self.name or 'SAE'}: the loss is {total} at step {self.steps}; no weight was"
                " changed. A lower lr, clip_norm or normalize='expected_norm' may help."
            )

    def _clip_scale(self, squared_norm: float) -> float:
        return min(1.0, self.adam.clip_norm / (squared_norm**0.5 + 1e-6))

    def _adam_arguments(self, lr: float) -> dict[str, Any]:
        a = self.adam
        return {"step": self.steps, "lr": lr, "beta1": a.beta1, "beta2": a.beta2, "eps": a.eps}

    def _update_threshold(self, values: Tensor) -> None:
        # Bussmann et al. 2024, eq. 8: the mean of the batches' smallest positive activations.
        if values.numel():
            least, known = torch.where(values > 0, values, float("inf")).min(), self.sae.threshold
            mixed = _THRESHOLD_DECAY * known + (1 - _THRESHOLD_DECAY) * least
            new = torch.where(known.isnan(), least, mixed)
            known.copy_(torch.where(least.isinf(), known, new))

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, whole."""
        return self._own_state()

    def _own_state(self) -> dict[str, Tensor]:
        """The same, as far as this process holds it."""
        state = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        state |= {f"adam.{name}": t for name, t in self.moments._asdict().items()}
        state |= {f"adam.small.{i}": tensor for i, tensor in enumerate(self.small_moments)}
        return state | {"inactive": self.inactive, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict`; KeyError or RuntimeError when it is not this SAE's."""
        mine = self._own_state()
        if mine.keys() != state.keys():
            raise KeyError(f"missing or unexpected tensors {sorted(mine.keys() ^ state.keys())}")
        for name, tensor in mine.items():  # all of them before the first is overwritten
            if (tensor.shape, tensor.dtype) != (state[name].shape, state[name].dtype):
                raise RuntimeError(
                    f"{name} is {state[name].dtype} {list(state[name].shape)},"
                    f" expected {tensor.dtype} {list(tensor.shape)}"
                )
        for name, tensor in mine.items():
            tensor.copy_(state[name])
        self.steps = int(state["steps"])


def _offsets(code: Code) -> Tensor:
    if code.row_offsets is not None:
        return code.row_offsets
    n, k = code.values.shape
    return torch.arange(n + 1, device=code.values.device) * k
