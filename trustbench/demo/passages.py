"""The passages that excite a feature most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trustbench.capture import ActivationCapture, resolve_hook_points
from trustbench.data import TokenBatch
from trustbench.ops.codes import entry_rows
from trustbench.sae import SAE

_BEFORE, _AFTER = 14, 6  # tokens of context around the peak
_LEAST_BEFORE = 4  # a peak at the start of a row has nothing to be read from


class Passage(NamedTuple):
    """A piece of text with a feature's activation on every token."""

    tokens: list[str]
    activations: list[float]


class Feature(NamedTuple):
    """A feature and what it responds to."""

    number: int
    density: float  # share of tokens it is active on
    largest: float  # its largest activation
    passages: list[Passage]  # by peak activation, largest first, from distinct rows of text


@torch.no_grad()
def best_features(
    saes: Mapping[str, SAE],
    model: Any,
    tokenizer: Any,
    batches: Iterable[TokenBatch],
    *,
    features: int = 8,
    passages: int = 5,
) -> dict[str, list[Feature]]:
    """For each hook point the features that read best, with their top passages.

    A feature reads well when it is rare but not singular (active on 0.01 % to 2 % of the tokens) and
    when its strongest activations fall on few different tokens: features are ranked by the share of
    the commonest token among their 20 strongest activations times the logarithm of how often they
    are active. Memory: the code of the text, k entries a token and layer.
    """
    points = resolve_hook_points(model, list(saes))
    by_name = {p.name: saes[n].eval() for p, n in zip(points, saes, strict=True)}
    capture = ActivationCapture(model, points)
    ids: list[Tensor] = []
    rows: list[Tensor] = []
    codes: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in by_name}
    tokens = row = 0
    for batch in batches:
        for name, acts in capture.run(batch.input_ids).items():
            code = by_name[name].encode_sparse(acts[batch.mask].float())
            at = entry_rows(code.indices, code.row_offsets) + tokens
            active = code.values.flatten() > 0
            flat = (code.indices.flatten(), at, code.values.flatten())
            codes[name].append(tuple(t[active] for t in flat))  # type: ignore[arg-type]
        ids.append(batch.input_ids[batch.mask])
        number = torch.arange(row, row + len(batch.mask))
        rows.append(number.repeat_interleave(batch.mask.sum(1)))
        tokens += len(ids[-1])
        row += len(batch.mask)
    text, row_of = torch.cat(ids), torch.cat(rows)
    words = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    result = {}
    for name, parts in codes.items():
        feature, at, value = (torch.cat(column) for column in zip(*parts, strict=True))
        order = feature.long().argsort(stable=True)
        counts = torch.bincount(feature, minlength=by_name[name].cfg.d_sae)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        chosen = []
        density = counts / tokens
        for f in ((density > 1e-4) & (density < 0.02)).nonzero().flatten().tolist():
            entries = order[starts[f] : starts[f + 1]]
            if len(entries) >= 20:
                strongest = entries[value[entries].argsort(descending=True)]
                commonest = torch.bincount(text[at[strongest[:20]]]).max().item() / 20
                chosen.append((commonest * len(entries) ** 0.25, f, strongest))
        chosen.sort(key=lambda entry: -entry[0])
        result[name] = [
            Feature(
                f,
                density[f].item(),
                value[strongest[0]].item(),
                _passages(strongest, at, value, text, row_of, words, passages),
            )
            for _, f, strongest in chosen[:features]
        ]
    return result


def _passages(
    strongest: Tensor,
    at: Tensor,
    value: Tensor,
    text: Tensor,
    row_of: Tensor,
    words: list[str],
    wanted: int,
) -> list[Passage]:
    activation = dict(zip(at[strongest].tolist(), value[strongest].tolist(), strict=True))
    found: list[Passage] = []
    seen: set[int] = set()
    for peak in activation:  # in falling order of activation
        row = int(row_of[peak])
        start = peak - _LEAST_BEFORE
        if row in seen or start < 0 or row_of[start] != row:
            continue
        seen.add(row)
        span = [
            t
            for t in range(max(0, peak - _BEFORE), min(len(text), peak + _AFTER + 1))
            if row_of[t] == row
        ]
        found.append(
            Passage([words[int(text[t])] for t in span], [activation.get(t, 0.0) for t in span])
        )
        if len(found) == wanted:
            break
    return found
