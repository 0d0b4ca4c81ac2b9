"""What a family of SAEs consists of, and what every objective reduces to.

An objective is entries that point at rows. Entry p, of value a and feature i, pointing at row r:

    dW_dec,i += a g_r        dpre = <g_r, W_dec,i> + penalty'(a)        dW_enc,i += dpre · source_r

with g_r = 2 weight residual_r / N. The main code points at the tokens' own residuals; AuxK's entries
at what the main code leaves; a Matryoshka entry at the sum of the residuals of all prefixes that
hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from trustbench import ops
from trustbench.ops import PaddedCode, TopKCode

if TYPE_CHECKING:
    from trustbench.sae.config import SAEConfig
    from trustbench.sae.losses import LossTerms
    from trustbench.sae.model import SAE

AnyCode = Any  # TopKCode | CSRCode | PaddedCode: a view of any of them


class How(NamedTuple):
    """How a step wants a code.

    room: places for a code whose size only the data tells, so that nobody waits to learn it; None:
    the exact code. dtype: of its values. batchtopk: chooses from a batch that several processes
    encode; None: `ops.encode_batchtopk`. dead: the features that AuxK may use, and dead_room places
    for them (None: as many as there are).
    """

    room: int | None = None
    dtype: torch.dtype | None = None
    batchtopk: Callable[..., AnyCode] | None = None
    dead: Tensor | None = None
    dead_room: int | None = None


class View:
    """An SAE as a step reads it: its own parameters, and what is given here in their place."""

    def __init__(self, sae: SAE, **instead: Any) -> None:
        self._sae = sae
        vars(self).update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sae, name)


class Part(NamedTuple):
    """Entries, and the rows that they point at: `repeat` of them a token, one after another."""

    code: AnyCode
    residual: Tensor  # [repeat N, d_out]
    weight: float = 1.0
    repeat: int = 1  # a row's source is the input of its token


class Terms(NamedTuple):
    """An objective without its penalty, on N tokens; all of it falls into rows of tokens."""

    code: AnyCode
    error: Tensor  # [N, d_out]: x_hat - target
    squared: Tensor  # [N]: the reconstruction's loss
    main: Part
    bias: Tensor  # [N, d_out]: the residuals whose sum is the gradient of b_dec (times 2 / N)
    auxk: Part | None = None
    entries: Mapping[str, Tensor] = {}  # more of every entry of the code, for the penalty
    fits: Tensor | None = None  # bool [1]: whether all rooms were large enough
    any_dead: Tensor | None = None  # bool: whether AuxK had a feature to use; None: it had


class Penalty(NamedTuple):
    """What a family adds to the loss: coefficient · total / N, and its gradients."""

    total: Tensor  # 0-d: Σ φ over the entries
    push: Tensor | None = None  # dφ/da of every entry; None: φ is a, or a ‖W_dec,i‖
    # Of parameters [F] of its own: every entry's gradient, in units of 2 / N.
    own: Mapping[str, Tensor] = {}


class Family(NamedTuple):
    """One kind of SAE, as data: the rest of the package asks for these, never for a name.

    x is scaled; `centred` is x without b_dec (for a transcoder x itself); y is what is reconstructed.
    """

    name: str
    about: str  # one line for the docs' table, with the paper
    uses: frozenset[str]  # fields of SAEConfig that mean something to it alone
    encode: Callable[[Any, Tensor, How], AnyCode]  # of (view, centred): in training; differentiable
    objective: Callable[[SAE, Tensor, Tensor, Tensor | None], LossTerms]  # of (sae, x, y, dead)
    # The fused step's, of (view, x, y, how); None: its steps go through autograd.
    terms: Callable[[Any, Tensor, Tensor, How], Terms] | None = None
    # Of (view, terms, half the factor of the penalty); None: no penalty, or autograd has it.
    penalty: Callable[[Any, Terms, Any], Penalty] | None = None
    coefficient: Callable[[SAEConfig], float] = lambda cfg: 0.0  # of the penalty
    decoder_norm: Callable[[SAEConfig], bool] = lambda cfg: False  # φ is of a ‖W_dec,i‖
    infer: Callable[[SAE, Tensor], Any] | None = None  # None: as in training
    parameters: Callable[[SAEConfig], dict[str, Tensor]] = lambda cfg: {}  # [F] each, fp32
    buffers: Callable[[SAEConfig], dict[str, Tensor]] = lambda cfg: {}
    check: Callable[[SAEConfig], None] = lambda cfg: None
    before: Callable[[SAE, float], None] | None = None  # of (sae, share of the run that is done)
    after: Callable[[SAE, Tensor], None] | None = None  # of (sae, the code's values)
    # How many entries a code has: k a token, k a token on average, or what the data gives.
    entries: Literal["k", "batch", "data"] = "data"
    dense: bool = False  # ReLU with a linear penalty: dense matmuls where L0 is in the thousands
    auxk: bool = False  # has AuxK
    rescaled: bool = True  # a tied start fits the encoder's scale; a threshold would fix one
    prefixes: Callable[[SAEConfig], list[int]] = lambda cfg: [cfg.d_sae]  # nested dictionaries


def reconstructed(view: Any, code: AnyCode, y: Tensor) -> tuple[Tensor, Tensor]:
    """(x_hat - y [N, d_out], its squared norms [N])."""
    return ops.reconstruct(code.values, code.indices, view.W_dec, view.b_dec, y, code.row_offsets)


def plain_terms(
    view: Any, x: Tensor, y: Tensor, encode: Callable[[Any, Tensor, How], AnyCode], how: How
) -> Terms:
    """Terms of a code that reconstructs y on its own, with AuxK where the family has it."""
    centred = view.centred(x)
    code = encode(view, centred, how)
    error, squared = reconstructed(view, code, y)
    terms = Terms(code, error, squared, Part(code, error), error, fits=fits_of(code))
    return with_auxk(terms, view, centred, how)


def fits_of(code: AnyCode) -> Tensor | None:
    """Whether a padded code is whole; None for one that always is."""
    return code.fits if isinstance(code, PaddedCode) else None


# ---------------------------------------------------------------- AuxK (Gao et al. 2024, A.2)


def with_auxk(terms: Terms, view: Any, centred: Tensor, how: How) -> Terms:
    """The terms with AuxK's: dead features reconstruct the residual, which they take as a constant.

    They get a gradient although they never enter the main code.
    """
    if how.dead is None or not view.cfg.auxk_features:
        return terms
    found = auxk_code(view, centred, how)
    if found is None:
        return terms
    code, enough = found
    residual = ops.decode(code.values, code.indices, view.W_dec) + terms.error
    part = Part(code, residual, view.cfg.auxk_coefficient)
    if enough is None:
        return terms._replace(auxk=part)
    fits = enough if terms.fits is None else terms.fits & enough
    return terms._replace(auxk=part, fits=fits, any_dead=how.dead.any())


def auxk_code(view: Any, centred: Tensor, how: How) -> tuple[TopKCode, Tensor | None] | None:
    """(The auxk largest pre-activations among the dead features, whether all of these took part).

    None when none is dead, which only the exact form notices. In `dead_room` places the values of
    missing features are 0.
    """
    assert how.dead is not None
    most, enough = view.cfg.auxk_features, None
    if how.dead_room is None:
        features = how.dead.nonzero().flatten()
        bias = view.b_enc[features]
    else:
        features, there, enough = _listed(how.dead, how.dead_room)
        # Behind the dead ones lie copies of feature 0 that nothing chooses: their value is -inf.
        bias = torch.where(there, view.b_enc[features], float("-inf"))
    k = min(most, len(features))
    if k == 0:
        return None
    code = ops.encode_topk(
        centred, view.W_enc[features], bias, k, matmul_dtype=view.matmul_dtype, out_dtype=how.dtype
    )
    return TopKCode(code.values, features.to(torch.int32)[code.indices.long()]), enough


def _listed(dead: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """(features int64 [room], which of these places hold one, whether all have a place: bool [1])."""
    places = dead.cumsum(0)
    to = torch.where(dead & (places <= room), places - 1, room)
    features = torch.zeros(room + 1, dtype=torch.int64, device=dead.device)
    features.scatter_(0, to, torch.arange(len(dead), device=dead.device))
    there = torch.arange(room, device=dead.device) < places[-1]
    return torch.where(there, features[:room], 0), there, places[-1:] <= room
