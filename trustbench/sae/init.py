"""Where training starts: input scale, decoder bias and encoder scale, measured on activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from trustbench.errors import bad

if TYPE_CHECKING:
    from trustbench.sae.model import SAE

BiasInit = Literal["geometric_median", "mean", "zero"]


def geometric_median(x: Tensor, *, tolerance: float = 1e-5, max_iterations: int = 200) -> Tensor:
    """The point [d] with the least mean distance to the rows of x [N, d] (Weiszfeld 1937).

    Iterates until the point moves by less than `tolerance` of the rows' mean distance to it.
    """
    if x.ndim != 2 or len(x) == 0:
        raise bad("x.shape", list(x.shape), "[N, d] with N >= 1")
    x = x.float()
    point = x.mean(0)
    for _ in range(max_iterations):
        distance = (x - point).norm(dim=1)
        # A row at the point itself would weigh infinitely much.
        weight = 1 / distance.clamp_min(torch.finfo(x.dtype).eps * (1 + distance.mean()))
        moved = (weight @ x) / weight.sum()
        step = (moved - point).norm()
        point = moved
        if step <= tolerance * distance.mean():
            break
    return point


def initial_b_dec(x: Tensor, method: BiasInit) -> Tensor:
    """b_dec [d] to start from, given a sample of (scaled) activations x [N, d]."""
    if method == "geometric_median":
        return geometric_median(x)
    if method == "mean":
        return x.float().mean(0)
    if method == "zero":
        return torch.zeros(x.shape[1], device=x.device)
    raise bad("b_dec_init", method, "'geometric_median', 'mean' or 'zero'")


def measure_input_scale(x: Tensor) -> float:
    """The s for which the mean of ‖s x‖ over the rows of x [N, d] is √d."""
    norm = x.float().norm(dim=1).mean().item()
    if not norm > 0:
        raise bad("x", f"mean norm {norm}", "activations with a positive, finite mean norm")
    return x.shape[1] ** 0.5 / norm


def random_directions(rows: int, d: int, seed: int) -> Tensor:
    """Random unit rows [rows, d], fp32, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, d, generator=generator), dim=1)


@torch.no_grad()
def initialise(
    sae: SAE, x: Tensor, b_dec_init: BiasInit = "geometric_median", *, target: Tensor | None = None
) -> None:
    """Fit a fresh SAE's start to a sample of activations x [N, d_in], as the model gives them.

    `target` [N, d_out] is what a transcoder reconstructs.

    Sets the input scale (where the config normalises), then b_dec, then, for a tied start, the scale
    of W_enc: the s that minimises ‖x - b_dec - s x_hat‖². Which features are active does not depend
    on s, but unscaled unit rows overlap and reconstruct several times too much, and the first part
    of the training would go into shrinking them.
    """
    if sae.cfg.transcoder and target is None:
        raise bad("target", None, "what the transcoder reconstructs")
    y = x if target is None else target
    if sae.cfg.normalize == "expected_norm":
        sae.input_scale.fill_(measure_input_scale(x))
        if sae.cfg.transcoder:
            sae.output_scale.fill_(measure_input_scale(y))
    scaled, wanted = sae.scaled(x), sae.scaled_target(y)
    sae.b_dec.copy_(initial_b_dec(wanted, b_dec_init))
    if sae.cfg.tied_init and sae.cfg.transcoder:
        sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_enc @ _linear_map(scaled, wanted)))
    if sae.cfg.tied_init and sae.family.rescaled:
        x_hat = sae.decode_scaled(sae.encode_scaled(scaled)) - sae.b_dec
        size = x_hat.square().sum()
        if size > 0:
            sae.W_enc.mul_(((wanted - sae.b_dec) * x_hat).sum() / size)


def _linear_map(x: Tensor, y: Tensor) -> Tensor:
    """The A [d_in, d_out] for which x A is nearest to y, both centred, with a little ridge."""
    x, y = (t.double() - t.double().mean(0) for t in (x, y))
    gram = x.T @ x
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=x.device)
    return torch.linalg.solve(gram + ridge, x.T @ y).float()
