"""Step: one SAE with its optimiser state, and what every way of computing its step has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trustbench import ops
from trustbench.defaults import BETA1, BETA2, DEAD_AFTER_TOKENS, EPS
from trustbench.errors import NonFiniteError
from trustbench.ops.parameters import Moments, Weights
from trustbench.sae import SAE
from trustbench.steps.shares import Shares
from trustbench.team import Team

_ADVICE = "A lower lr, clip_norm or normalize='expected_norm' may help."


class AdamOptions(NamedTuple):
    """Adam's constants, and the clipping norm (0: off)."""

    beta1: float = BETA1
    beta2: float = BETA2
    eps: float = EPS
    clip_norm: float = 0.0


class StepResult(NamedTuple):
    """One step's metrics, in scaled space; `fvu`, `l0` and `dead_fraction` when asked for."""

    loss: float
    mse: float
    auxk: float
    fvu: float | None = None
    l0: float | None = None
    dead_fraction: float | None = None


class Step(ABC):
    """An SAE with its optimiser state and its record of when each feature last fired.

    Parameters
    ----------
    sae : SAE, fp32
    adam : AdamOptions
    dead_after_tokens : int
        A feature is dead when it was inactive for this many tokens.
    name : str
        Of the wiring, for error messages.
    moment_dtype : torch.dtype
        fp32, or bf16 (rounded by chance, right in the mean) where the step runs on Triton kernels.
    team : Team or None
        The processes that share the SAE: the same on each, which calls `step` with the whole batch.
    """

    keeps_batch = False  # whether a batch is still needed when its step has returned

    def __init__(
        self,
        sae: SAE,
        adam: AdamOptions | None = None,
        *,
        dead_after_tokens: int = DEAD_AFTER_TOKENS,
        name: str = "",
        moment_dtype: torch.dtype = torch.float32,
        team: Team | None = None,
    ) -> None:
        self.sae, self.name, self.dead_after = sae.train(), name, dead_after_tokens
        self.family = sae.family
        self.adam = adam or AdamOptions()
        self.steps = 0
        self.shares = Shares(team or Team(), sae.cfg.d_sae, whole=self.updates_all_features())
        device = sae.W_enc.device
        # Tokens since each feature was last active.
        self.inactive = torch.zeros(sae.cfg.d_sae, dtype=torch.int64, device=device)
        self.weights = Weights(sae.W_enc.data, sae.W_dec.data, sae.b_enc.data)
        self.moments = Moments.zeros_like(self.updated, moment_dtype)
        # The parameters that sparse_adam_ does not own, with their m and v.
        big = {id(p) for p in (sae.W_enc, sae.W_dec, sae.b_enc)}
        self.small = {n: p.data.view(1, -1) for n, p in sae.named_parameters() if id(p) not in big}
        self.small_moments = [torch.zeros_like(p) for p in self.small.values() for _ in range(2)]

    def updates_all_features(self) -> bool:
        """Whether every process updates all features, although they share the tokens."""
        return False

    @property
    def updated(self) -> Weights:
        """The weights of the features that this process updates."""
        return Weights(*(w[self.shares.features] for w in self.weights))

    @property
    def dead(self) -> Tensor:
        """Which features are dead now, bool [F]."""
        return self.inactive >= self.dead_after

    @abstractmethod
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
        """Train on activations x [N, d_in] as the model gives them.

        Parameters
        ----------
        target : Tensor [N, d_out]
            What a transcoder reconstructs.
        penalty_scale : float
            Multiplies the penalty's coefficient.
        done : float
            Share of the run that is done, for what is annealed.
        measure : bool
            Whether all of the result is wanted; without it a step may return None.

        Raises
        ------
        NonFiniteError
            When the loss is not finite. The step changed no weight.
        """

    def refresh_copies(self) -> None:  # noqa: B027
        """To be called when something else has changed the weights: here nothing depends on them."""

    def finish_pending(self) -> None:  # noqa: B027
        """To be called before the weights are read: here no step is ever unfinished."""

    def adam_update(self, parameter: str, grad: Tensor, **options: Any) -> None:
        """Adam on one of the small parameters."""
        place = 2 * list(self.small).index(parameter)
        m, v = self.small_moments[place], self.small_moments[place + 1]
        ops.adam_(self.small[parameter], grad.view(1, -1), m, v, **options)

    def adam_options(self, lr: float) -> dict[str, Any]:
        """What Adam's ops are given, beside the gradient."""
        a = self.adam
        return {"step": self.steps, "lr": lr, "beta1": a.beta1, "beta2": a.beta2, "eps": a.eps}

    def clip_scale(self, squared_norm: float) -> float:
        """What gradients of this norm are multiplied by."""
        return min(1.0, self.adam.clip_norm / (squared_norm**0.5 + 1e-6))

    def check_loss(self, total: float) -> None:
        """NonFiniteError for a loss that is not finite, before any weight has changed."""
        if total != total or total in (float("inf"), float("-inf")):
            raise NonFiniteError(
                f"{self.name or 'SAE'}: the loss is {total} at step {self.steps}; no weight was"
                f" changed. {_ADVICE}"
            )

    def not_finite_at(self, step: float) -> NonFiniteError:
        """For a step whose loss was read later."""
        return NonFiniteError(
            f"{self.name or 'SAE'}: the loss was not finite at step {step:.0f}; that step changed no"
            f" weight. {_ADVICE}"
        )

    def record_activity(self, values: Tensor, indices: Tensor, N: int) -> Tensor:
        """Count N tokens; which entries are active, flat."""
        self.inactive += N
        active = values.flatten() > 0
        self.inactive[indices.flatten()[active].long()] = 0
        return active

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, whole, on every process."""
        state = self.own_state()
        for name in Moments._fields:
            state[f"adam.{name}"] = self.shares.whole(state[f"adam.{name}"])
        return state

    def own_state(self) -> dict[str, Tensor]:
        """The same, as far as this process holds it."""
        state = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        state |= {f"adam.{name}": t for name, t in self.moments._asdict().items()}
        state |= {f"adam.small.{i}": tensor for i, tensor in enumerate(self.small_moments)}
        return state | {"inactive": self.inactive, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict`, of any number of processes.

        Raises
        ------
        KeyError, RuntimeError
            When it is not this SAE's; nothing is restored then.
        """
        mine, shared = self.own_state(), {f"adam.{name}" for name in Moments._fields}
        if mine.keys() != state.keys():
            raise KeyError(f"missing or unexpected tensors {sorted(mine.keys() ^ state.keys())}")
        rows = self.shares.features
        state = {n: t[rows] if n in shared and t.ndim else t for n, t in state.items()}
        for name, tensor in mine.items():  # all of them before the first is overwritten
            if (tensor.shape, tensor.dtype) != (state[name].shape, state[name].dtype):
                raise RuntimeError(
                    f"{name} is {state[name].dtype} {list(state[name].shape)},"
                    f" expected {tensor.dtype} {list(tensor.shape)}"
                )
        for name, tensor in mine.items():
            tensor.copy_(state[name])
        self.steps = int(state["steps"])
