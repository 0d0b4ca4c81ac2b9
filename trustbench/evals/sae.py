"""What SAEs keep of a model, measured on text that they were not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trustbench.data import TokenBatch
from trustbench.errors import DataError, bad
from trustbench.models import ActivationCapture, HookPoint, hooked, resolve_hook_points
from trustbench.report import Table
from trustbench.sae import SAE
from trustbench.sae.stats import firing_counts
from trustbench.sae.wiring import autoencoder

# Feature densities are counted in bins of log10(density): below the first edge lies "never".
DENSITY_EDGES = tuple(-6 + 0.25 * i for i in range(25))
DENSE = 0.1  # a feature that fires on more than this share of tokens is dense


class LayerEval(NamedTuple):
    """One SAE's columns of an evaluation."""

    fvu: float  # Σ‖x - x_hat‖² / Σ‖x - mean x‖²
    l0: float  # active features a token
    cosine: float  # mean cosine of x and x_hat
    dead_fraction: float  # features that never fired on these tokens
    dense_fraction: float  # features that fired on more than 10 % of them
    ce_original: float  # nats a predicted token
    ce_reconstructed: float  # with x_hat in the place of x
    ce_zero: float  # with 0 in the place of x
    ce_mean: float  # with the mean activation in the place of x
    loss_recovered: float  # (ce_zero - ce_reconstructed) / (ce_zero - ce_original)
    loss_recovered_mean: float  # the same against ce_mean
    density_histogram: list[int]  # features per bin of density_edges, never-firing left out
    density_edges: list[float]  # of the bins: log10 of a feature's density


class _Sums:
    """Running sums of one layer; all in fp64."""

    def __init__(self, sae: SAE) -> None:
        d, F = sae.cfg.width_out, sae.cfg.d_sae
        self.prefixes = sae.family.prefixes(sae.cfg)
        self.prefix_errors = [0.0 for _ in self.prefixes]
        self.error = self.squares = self.cosine = self.active = 0.0
        device = sae.W_enc.device
        self.mean = torch.zeros(d, dtype=torch.float64, device=device)
        self.firing = torch.zeros(F, dtype=torch.int64, device=device)

    def add(self, sae: SAE, x: Tensor, y: Tensor) -> None:
        code = sae.encode_sparse(x)
        x_hat = sae.decode(code, x).to(torch.float64)
        wide = y.to(torch.float64)
        self.error += (wide - x_hat).square().sum().item()
        if len(self.prefixes) > 1:
            for place, width in enumerate(self.prefixes):
                part = code._replace(values=code.values * (code.indices < width))
                error = wide - sae.decode(part, x).to(torch.float64)
                self.prefix_errors[place] += error.square().sum().item()
        self.squares += wide.square().sum().item()
        self.mean += wide.sum(0)
        self.cosine += torch.nn.functional.cosine_similarity(wide, x_hat, dim=1).sum().item()
        counts = firing_counts(code, sae.cfg.d_sae)
        self.firing += counts
        self.active += counts.sum().item()


@torch.no_grad()
def evaluate_saes(
    saes: Mapping[str, SAE],
    model: Any,
    batches: Iterable[TokenBatch],
    *,
    tokens: int = 100_000,
    spliced_tokens: int = 20_000,
) -> Table:
    """Evaluate SAEs on a model and held-out text.

    Parameters
    ----------
    saes : {hook point: SAE}
        A transcoder is evaluated on what it writes, by what it reads in the same forward.
    model
        The transformers causal LM that they belong to, on the same device.
    batches : iterable of TokenBatch
        Held-out text. Masked positions (padding, an added BOS token) count for nothing; a
        cross-entropy is a mean over the tokens that follow an unmasked or BOS position.
    tokens : int
        Activations to evaluate, at least, if the text has them.
    spliced_tokens : int
        Of these, how many to run the model on four times a layer for the cross-entropies.

    Returns
    -------
    Table
        A row a hook point: `hook_point`, `tokens` (activations evaluated), `predicted_tokens` (that
        the cross-entropies are means over) and LayerEval's columns; for nested dictionaries also
        `prefixes` and `prefix_fvu`. A share of nothing is None.

    Raises
    ------
    DataError
        When the text holds no two tokens.
    """
    if tokens < 1 or spliced_tokens < 1:
        raise bad("tokens", min(tokens, spliced_tokens), "an integer >= 1")
    wired = [_Wired.of(name, sae.eval(), model) for name, sae in saes.items()]
    points = {point.name: point for one in wired for point in (one.read, one.write)}
    capture = ActivationCapture(model, list(points.values()))
    sums = {one.name: _Sums(one.sae) for one in wired}
    seen = kept_tokens = 0
    kept: list[TokenBatch] = []
    for host_batch in batches:
        batch = TokenBatch(*(tensor.to(model.device) for tensor in host_batch))
        captured = capture.run(batch.input_ids)
        acts = {name: captured.pop(name)[batch.mask].float() for name in points}
        for one in wired:
            sums[one.name].add(one.sae, acts[one.read.name], acts[one.write.name])
        count = int(batch.mask.sum())
        if kept_tokens < spliced_tokens:
            kept.append(batch)
            kept_tokens += count
        seen += count
        if seen >= tokens:
            break
    predicted = sum(int(batch.mask[:, 1:].sum()) for batch in kept)
    if predicted == 0:
        raise DataError("data: the evaluated part holds no two tokens in a row")

    original = _cross_entropy(model, kept)
    table = Table()
    for one in wired:
        row = {"hook_point": one.name, "tokens": seen, "predicted_tokens": predicted}
        found = sums[one.name]
        layer = _layer(one.sae, found, seen, original, _Splicer(model, one, kept))
        nested = _nested(found, seen) if len(found.prefixes) > 1 else {}
        table.append(row | layer._asdict() | nested)
    return table


class _Wired(NamedTuple):
    """An SAE, and the hook points that it reads and writes."""

    name: str
    sae: SAE
    read: HookPoint
    write: HookPoint

    @classmethod
    def of(cls, name: str, sae: SAE, model: Any) -> _Wired:
        wiring = sae.wiring or autoencoder(name)
        if not sae.cfg.transcoder:  # by its name, in any spelling
            wiring = autoencoder(name)
        elif sae.wiring is None:
            raise bad("saes", name, "a transcoder with its wiring, as training and load give it")
        read, write = (resolve_hook_points(model, [n])[0] for n in (wiring.reads, wiring.writes))
        return cls(write.name, sae, read, write)


class _Splicer:
    """Cross-entropy with something else in the place of what a dictionary writes."""

    def __init__(self, model: Any, wired: _Wired, batches: list[TokenBatch]) -> None:
        self.model, self.wired, self.batches = model, wired, batches

    def __call__(self, function: Callable[[Tensor], Tensor]) -> float:
        with hooked(self.model, {self.wired.write: function}):
            return _cross_entropy(self.model, self.batches)

    def reconstructed(self) -> float:
        """With what the dictionary makes of its input, in the same forward."""
        sae, read, write = self.wired.sae, self.wired.read, self.wired.write
        if read.name == write.name:
            return self(lambda x: sae(x))
        with hooked(self.model, {write: lambda y: sae(acts[read.name])}, read=[read]) as acts:
            return _cross_entropy(self.model, self.batches)


def _nested(sums: _Sums, n: int) -> dict[str, list[float]]:
    """fvu of each nested dictionary."""
    variance = sums.squares - (sums.mean.square().sum() / n).item()
    fvus = [error / variance if variance > 0 else math.nan for error in sums.prefix_errors]
    return {"prefixes": list(sums.prefixes), "prefix_fvu": fvus}


def _layer(sae: SAE, sums: _Sums, n: int, original: float, splice: _Splicer) -> LayerEval:
    mean = sums.mean / n
    variance = sums.squares - n * mean.square().sum().item()
    reconstructed = splice.reconstructed()
    zero = splice(torch.zeros_like)
    with_mean = splice(lambda x: mean.to(x.dtype).expand_as(x))
    density = sums.firing.double().cpu() / n
    log_density = density[density > 0].log10().clamp(DENSITY_EDGES[0], DENSITY_EDGES[-1])
    histogram = torch.histogram(log_density, torch.tensor(DENSITY_EDGES, dtype=torch.float64)).hist
    return LayerEval(
        fvu=sums.error / variance if variance > 0 else math.nan,
        l0=sums.active / n,
        cosine=sums.cosine / n,
        dead_fraction=(density == 0).double().mean().item(),
        dense_fraction=(density > DENSE).double().mean().item(),
        ce_original=original,
        ce_reconstructed=reconstructed,
        ce_zero=zero,
        ce_mean=with_mean,
        loss_recovered=_recovered(zero, reconstructed, original),
        loss_recovered_mean=_recovered(with_mean, reconstructed, original),
        density_histogram=histogram.long().tolist(),
        density_edges=list(DENSITY_EDGES),
    )


def _recovered(ablated: float, reconstructed: float, original: float) -> float:
    # Where ablation costs nothing there is nothing to recover.
    return (ablated - reconstructed) / (ablated - original) if ablated != original else math.nan


def _cross_entropy(model: Any, batches: list[TokenBatch]) -> float:
    """Mean next-token loss (nats) over the unmasked tokens that have a predecessor in their row."""
    total, count = 0.0, 0
    for batch in batches:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1].float()
        wanted = batch.mask[:, 1:]
        loss = torch.nn.functional.cross_entropy(
            logits[wanted], batch.input_ids[:, 1:][wanted], reduction="sum"
        )
        total += loss.item()
        count += int(wanted.sum())
    return total / count
