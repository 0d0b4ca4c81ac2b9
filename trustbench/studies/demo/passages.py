"""The passages that excite a feature most, and the features that read best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trustbench.data import TokenBatch
from trustbench.models import ActivationCapture, resolve_hook_points
from trustbench.ops import Code
from trustbench.ops.codes import entry_rows
from trustbench.sae import SAE

BEFORE, AFTER = 16, 10  # tokens of context around a peak
LEAST_BEFORE = 4  # a peak at the start of a row has nothing to be read from
PEAKS = 10  # of every feature, kept to judge it by
RAREST, COMMONEST = 2e-4, 1e-2  # share of tokens that a feature worth showing is active on
_PROMOTED = 6
_NONE = -1  # no token: outside the row


class Passage(NamedTuple):
    """A piece of text with a feature's activation on every token."""

    tokens: list[str]
    activations: list[float]
    peak: int  # which of the tokens it was chosen for


class Feature(NamedTuple):
    """A feature and what it responds to."""

    number: int
    density: float  # share of tokens it is active on
    largest: float  # its largest activation
    passages: list[Passage]  # by activation at the peak, largest first, from distinct rows of text
    promoted: list[str]  # tokens whose logits its decoder direction raises most


class TopPeaks:
    """The strongest peaks of every feature of one SAE, at most one from a row of text.

    Memory: F · peaks · (BEFORE + 1 + AFTER) · 8 bytes, however long the text is (and while a batch is
    taken in, a few times that and the batch's code).

    Parameters
    ----------
    d_sae : int
    peaks : int
        How many to keep for each feature.

    Attributes
    ----------
    tokens_seen : int
    count : Tensor [F], int64: tokens each feature was active on
    largest : Tensor [F], fp32: its largest activation anywhere
    value : Tensor [F, peaks], fp32: its peaks, falling; 0 where there are fewer. Only tokens with
        LEAST_BEFORE tokens before them in their row can be peaks
    ids, acts : Tensor [F, peaks, BEFORE + 1 + AFTER], int32 and fp32: the text around each peak and
        the feature's activations on it; id -1 outside the row
    """

    def __init__(self, d_sae: int, peaks: int) -> None:
        window = BEFORE + 1 + AFTER
        self.tokens_seen = 0
        self.count = torch.zeros(d_sae, dtype=torch.int64)
        self.largest = torch.zeros(d_sae)
        self.value = torch.zeros(d_sae, peaks)
        self.ids = torch.full((d_sae, peaks, window), _NONE, dtype=torch.int32)
        self.acts = torch.zeros(d_sae, peaks, window)

    def add(self, code: Code, batch: TokenBatch) -> None:
        """Take in the code of a batch's unmasked tokens."""
        F, kept = self.value.shape
        B, T = batch.mask.shape
        mask = batch.mask.flatten()
        places = mask.nonzero().flatten()  # of the code's tokens in the padded rows
        at = places[entry_rows(code.indices, code.row_offsets)]
        value, feature = code.values.flatten().float(), code.indices.flatten().long()
        active = value > 0
        at, value, feature = at[active], value[active], feature[active]
        self.tokens_seen += len(places)
        self.count += torch.bincount(feature, minlength=F)
        self.largest.scatter_reduce_(0, feature, value, "amax")

        # The peak of every feature in every row; of equal ones the first.
        before = (batch.mask.cumsum(1) - 1).flatten()
        readable = before[at] >= LEAST_BEFORE
        cell, v, a = (feature * B + at // T)[readable], value[readable], at[readable]
        peak = torch.zeros(F * B).scatter_reduce_(0, cell, v, "amax")
        is_peak = v == peak[cell]
        centre = torch.full((F * B,), B * T).scatter_reduce_(0, cell[is_peak], a[is_peak], "amin")

        # Merged with those of earlier batches, which win ties.
        merged = torch.cat([self.value, peak.view(F, B)], 1)
        self.value, order = (t[:, :kept] for t in merged.sort(dim=1, descending=True, stable=True))
        earlier = order.clamp(max=kept - 1)[..., None].expand_as(self.ids)
        self.ids, self.acts = self.ids.gather(1, earlier), self.acts.gather(1, earlier)
        f, slot = ((order >= kept) & (self.value > 0)).nonzero(as_tuple=True)
        centre = centre.view(F, B)[f, order[f, slot] - kept, None]
        span = centre + torch.arange(-BEFORE, AFTER + 1)
        inside = span // T == centre // T
        span = span.clamp(0, B * T - 1)
        inside &= mask[span]
        self.ids[f, slot] = batch.input_ids.flatten()[span].where(inside, _NONE).int()
        found = _looked_up(feature * B * T + at, value, f[:, None] * B * T + span)
        self.acts[f, slot] = found * inside


def _looked_up(keys: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """values[i] where wanted == keys[i], 0 where it is none of the keys (which are distinct)."""
    if len(keys) == 0:
        return torch.zeros(wanted.shape)
    keys, order = keys.sort()
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return values[order][place] * (keys[place] == wanted)


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
    """For each hook point the features that read best, with their top passages; one pass.

    Half of them are for a kind of token, half for one token: see `ranked`. Promoted tokens are those
    of the largest W_dec[feature] · unembedding, mean over the vocabulary taken off (the "logit lens";
    the final norm is left out).

    Parameters
    ----------
    saes : {hook point: SAE}
    model, tokenizer
        The transformers causal LM that they belong to.
    batches : iterable of TokenBatch
        The text to look in.
    features : int
        How many of each hook point.
    passages : int
        How many of each feature.
    """
    points = resolve_hook_points(model, list(saes))
    by_name = {p.name: saes[n].eval() for p, n in zip(points, saes, strict=True)}
    capture = ActivationCapture(model, points)
    kept = max(PEAKS, passages)
    tops = {name: TopPeaks(sae.cfg.d_sae, kept) for name, sae in by_name.items()}
    for batch in batches:
        for name, acts in capture.run(batch.input_ids).items():
            tops[name].add(by_name[name].encode_sparse(acts[batch.mask].float()), batch)
    words = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    unembedding = model.get_output_embeddings().weight.float()[: len(words)]
    unembedding = unembedding - unembedding.mean(0)
    result = {}
    for name, top in tops.items():
        kinds, tokens = ranked(top, unembedding)
        kinds = kinds[: features - features // 2]
        chosen = [*kinds, *(f for f in tokens if f not in kinds)][:features]
        raised = by_name[name].W_dec[chosen].float() @ unembedding.T
        promoted = raised.topk(min(_PROMOTED, len(words)), dim=1).indices.tolist()
        result[name] = [
            Feature(
                number,
                top.count[number].item() / top.tokens_seen,
                top.largest[number].item(),
                _passages(top, number, words, passages),
                [words[i] for i in best],
            )
            for number, best in zip(chosen, promoted, strict=True)
        ]
    return result


def ranked(top: TopPeaks, meaning: Tensor) -> tuple[list[int], list[int]]:
    """The features that read well, best first: those for a kind of token, those for one token.

    Only features that are active on 0.02 % to 1 % of the tokens and have all their peaks are
    considered. With the token at a feature's peaks, a pair of peaks counts

        for a kind of token:  the cosine of the two tokens' unembeddings, 0 for the same token
        for one token:        1 for the same token, 0 for different ones

    and the score is the mean over pairs times the mean activation at the peaks: strong features with
    a plain meaning. Of features with the same commonest token only the best of each list is given.

    Parameters
    ----------
    top : TopPeaks
    meaning : Tensor [V, d]
        A direction for every token.
    """
    density = top.count / max(top.tokens_seen, 1)
    eligible = (density > RAREST) & (density < COMMONEST) & (top.value[:, -1] > 0)
    numbers = eligible.nonzero().flatten()
    tokens = top.ids[numbers, :, BEFORE].long()
    pairs = tokens.shape[1] * (tokens.shape[1] - 1)
    meaning = torch.nn.functional.normalize(meaning, dim=1)
    alike, same = [torch.zeros(0)], [torch.zeros(0)]
    for part in tokens.split(1024):
        equal = part[:, :, None] == part[:, None, :]
        cosine = meaning[part] @ meaning[part].mT
        alike.append((cosine * ~equal).sum((1, 2)) / pairs)
        same.append(equal.sum((1, 2)) / pairs - 1 / (tokens.shape[1] - 1))
    strength = top.value[numbers].mean(1)
    commonest = tokens.mode(1).values.tolist() if len(tokens) else []
    kinds, words = (_distinct(strength * torch.cat(measure), commonest) for measure in (alike, same))
    return [int(numbers[i]) for i in kinds], [int(numbers[i]) for i in words]


def _distinct(score: Tensor, label: Sequence[int]) -> list[int]:
    """Places in falling order of score, the first of every label."""
    best: dict[int, int] = {}
    for i in score.argsort(descending=True, stable=True).tolist():
        best.setdefault(label[i], i)
    return list(best.values())


def _passages(top: TopPeaks, number: int, words: Sequence[str], wanted: int) -> list[Passage]:
    found = []
    for value, ids, acts in zip(
        top.value[number, :wanted], top.ids[number], top.acts[number], strict=False
    ):
        if value > 0:
            inside = ids != _NONE
            tokens = [words[i] for i in ids[inside].tolist()]
            found.append(Passage(tokens, acts[inside].tolist(), int(inside[:BEFORE].sum())))
    return found
