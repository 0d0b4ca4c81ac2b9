"""The training loss through autograd ("way 1"): any optimiser, any schedule, research of any kind.

    loss = mean_n ‖y - y_hat‖²  +  penalty  +  auxk_coefficient · AuxK

in scaled space, with y = x, or what a transcoder reconstructs. Every reduction is a sum over
dimensions or features and a mean over tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from trustbench import ops
from trustbench.errors import bad
from trustbench.ops import Code
from trustbench.sae.families import family
from trustbench.sae.families.base import How, auxk_code, reconstructed

if TYPE_CHECKING:
    from trustbench.sae.model import SAE


class LossTerms(NamedTuple):
    """The loss and its parts (scalars), the reconstruction in scaled space, and the code."""

    total: Tensor
    mse: Tensor
    penalty: Tensor
    auxk: Tensor
    x_hat: Tensor  # [N, d_out]
    code: Code


def loss(
    sae: SAE, x: Tensor, dead: Tensor | None = None, *, target: Tensor | None = None
) -> LossTerms:
    """The training loss of `sae` on activations x [..., d_in].

    Parameters
    ----------
    dead : Tensor [F], bool
        Features that count as dead, for AuxK; None: AuxK is 0.
    target : Tensor [..., d_out]
        What a transcoder reconstructs; None: x.

    Raises
    ------
    InputError
        For a wrong shape or dtype, an empty x, or a transcoder without its target.

    Examples
    --------
    >>> sae = tb.SAE(tb.SAEConfig(d_in=16, d_sae=64, k=4))
    >>> terms = tb.loss(sae, torch.randn(32, 16))
    >>> terms.total.backward()
    >>> sae.W_enc.grad.shape, terms.x_hat.shape
    (torch.Size([64, 16]), torch.Size([32, 16]))
    """
    y = sae.scaled_target(x if target is None else target)
    x = sae.scaled(x)
    if len(x) == 0:
        raise bad("x.shape", list(x.shape), "at least one token")
    if len(x) != len(y):
        raise bad("target.shape", list(y.shape), f"{len(x)} tokens, as x has")
    skipped = sae.skipped(x)
    found = family(sae.cfg.activation).objective(sae, x, y - skipped, dead)
    return found if sae.W_skip is None else found._replace(x_hat=found.x_hat + skipped)


def plain_objective(
    sae: Any,
    x: Tensor,
    y: Tensor,
    code: Any,  # Code | Callable[[Any, Tensor, How], Code]
    dead: Tensor | None,
    penalty: Callable[[Any], Tensor] | None = None,
) -> LossTerms:
    """The loss of one code (or of what encodes one), with AuxK and a penalty where there are."""
    if callable(code):
        code = code(sae, sae.centred(x), How())
    error, squared = reconstructed(sae, code, y)
    mse, zero = squared.mean(), x.new_zeros(())
    auxk = auxk_loss(sae, x, error, dead)
    added = zero if penalty is None else penalty(code)
    total = mse + added + sae.cfg.auxk_coefficient * auxk
    return LossTerms(total, mse, added, auxk, y + error, code)


def auxk_loss(sae: Any, x: Tensor, error: Tensor, dead: Tensor | None) -> Tensor:
    """mean_n ‖(y - y_hat) - e_hat‖², where dead features give e_hat; 0 without any."""
    found = None
    if dead is not None and sae.cfg.auxk_features > 0:
        found = auxk_code(sae, sae.centred(x), How(dead=dead))
    if found is None:
        return x.new_zeros(())
    code, _ = found
    e_hat = ops.decode(code.values, code.indices, sae.W_dec)
    return (error.detach() + e_hat).square().sum(1).mean()
