"""Head scores: induction, previous-token, duplicate-token, sink and local heads, told from chance."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trustbench.attention.head_attention import HeadAttention
from trustbench.attention.layers import capture
from trustbench.errors import bad

EARLIER = 4  # occurrences of a token that count as its earlier ones: the last so many


class HeadScores(NamedTuple):
    """One layer's heads: means over the queries that each score is defined for. [H] each, fp64.

    All but `distance` lie in [0, 1] whatever the architecture: masses are probabilities, and entropy
    is divided by ln(visible keys) (a row with one visible key has none).
    """

    induction: Tensor  # mass on what followed the query's token before (Olsson et al. 2022)
    duplicate: Tensor  # mass on the query's token before
    previous: Tensor  # mass on the token before the query
    sink: Tensor  # mass on the first token, of queries behind it
    local: Tensor  # mass on the last 8 positions
    entropy: Tensor  # H / ln(visible keys)
    distance: Tensor  # mean look-back, tokens
    within: Tensor  # [H_kv] Jensen-Shannon divergence among a kv group's heads, of ln(their number)
    between: Tensor  # [1] the same between the groups


def repeated_tokens(vocabulary: int, rows: int, half: int, seed: int = 0, first: int = 0) -> Tensor:
    """[rows, 2 half] int64: random tokens of [first, vocabulary), each row said twice.

    What induction heads are found on: nothing but the repetition predicts the second half.
    """
    if half < 2 or not 0 <= first < vocabulary:
        raise bad("half", half, "at least 2, and first in [0, vocabulary)")
    draws = torch.Generator().manual_seed(seed)
    ids = torch.randint(first, vocabulary, (rows, half), generator=draws)
    return torch.cat([ids, ids], 1)


def earlier_occurrences(input_ids: Tensor, most: int = EARLIER) -> Tensor:
    """[B, T, most] int32: the last positions before t that hold the same token as t; -1 for none."""
    B, T = input_ids.shape
    order = input_ids.argsort(dim=1, stable=True)  # tokens together, positions ascending
    grouped = input_ids.gather(1, order)
    found = torch.full((B, T, most), -1, dtype=torch.int64, device=input_ids.device)
    for back in range(1, min(most, T - 1) + 1):
        same = grouped[:, back:] == grouped[:, :-back]
        before = torch.where(same, order[:, :-back], -1)
        found[:, :, back - 1].scatter_(1, order[:, back:], before)
    return found.to(torch.int32)


def head_scores(
    model: Any,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    shuffled: int | None = None,
) -> dict[str, HeadScores]:
    """Scores of every head of every layer that has a pattern: {path of its attention: HeadScores}.

    Parameters
    ----------
    model
        A transformers causal LM.
    input_ids : Tensor [B, T]
        `repeated_tokens`, or natural text.
    attention_mask : Tensor [B, T] or None
        0 for padding.
    shuffled : int or None
        See trustbench.attention.capture: the scores of permuted keys.
    """
    earlier = earlier_occurrences(input_ids)
    after = torch.where(earlier >= 0, earlier + 1, -1)
    # What follows the token before the query may be the query itself: that is no look back.
    after = after.masked_fill(after >= torch.arange(input_ids.shape[1])[None, :, None], -1)
    found = capture(
        model, input_ids, attention_mask=attention_mask, divergence=True, shuffled=shuffled,
        targets=torch.cat([earlier, after], 2).to(model.device),
    )  # fmt: skip
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    return {
        name: _scores(heads, earlier >= 0, after >= 0, real.bool())
        for name, heads in found.items()
        if isinstance(heads, HeadAttention)
    }


def _scores(heads: HeadAttention, earlier: Tensor, after: Tensor, real: Tensor) -> HeadScores:
    def mean(statistic: Tensor, rows: Tensor) -> Tensor:
        """Over rows [B, T] of [B, H, T]; NaN where there is none."""
        rows = (rows & real).to(statistic.device)[:, None]
        return torch.where(rows, statistic.double(), 0).sum((0, 2)) / rows.sum()

    every, counts = torch.ones_like(real), heads.visible.cpu()
    duplicate, induction = heads.targets[..., :EARLIER], heads.targets[..., EARLIER:]
    most = counts.double().log().clamp_min(1e-9)[:, None].to(heads.entropy.device)
    groups = heads.within.shape[1] if heads.within is not None else 1
    size = heads.entropy.shape[1] // groups
    assert heads.within is not None and heads.between is not None
    return HeadScores(
        induction=mean(induction.sum(-1), after.any(2)),
        duplicate=mean(duplicate.sum(-1), earlier.any(2)),
        previous=mean(heads.previous, counts > 1),
        sink=mean(heads.first, counts > 1),
        local=mean(heads.last, every),
        entropy=mean(heads.entropy / most, counts > 1),
        distance=mean(heads.distance, every),
        within=_share(mean(heads.within, counts > 1), size),
        between=_share(mean(heads.between[:, None], counts > 1), groups),
    )


def _share(divergence: Tensor, count: int) -> Tensor:
    """Of ln(count), the most that so many patterns can diverge by; NaN for one."""
    return (
        divergence / torch.tensor(float(count), dtype=torch.float64).log()
        if count > 1
        else (torch.full_like(divergence, torch.nan))
    )


class HeadProfile(NamedTuple):
    """One layer's scores, raw and against what its architecture gives without having learned."""

    raw: HeadScores
    z_initial: HeadScores  # against the same architecture with random weights
    z_shuffled: HeadScores  # against the same model with permuted keys


def head_profile(
    model: Any,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    repeats: int = 5,
    seed: int = 0,
) -> dict[str, HeadProfile]:
    """Head scores with z-scores against two nulls, so that architecture is not taken for signal.

    z = (score - mean of the null) / (standard deviation of the null over its draws and the layer's
    heads): a layer of a null is one population, as its heads are alike by construction.

    Parameters
    ----------
    repeats : int
        Draws of each null, at least 2.
    """
    if repeats < 2:
        raise bad("repeats", repeats, "an integer >= 2")
    raw = head_scores(model, input_ids, attention_mask=attention_mask)

    def null(draw: Callable[[int], dict[str, HeadScores]]) -> dict[str, HeadScores]:
        draws = [draw(seed + i) for i in range(repeats)]
        return {
            name: HeadScores(
                *(
                    _z(score, torch.stack([d[name][i] for d in draws]))
                    for i, score in enumerate(scores)
                )
            )
            for name, scores in raw.items()
        }

    def initial(draw: int) -> dict[str, HeadScores]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw)
            fresh = type(model)(copy.deepcopy(model.config)).to(model.device, model.dtype).eval()
        return head_scores(fresh, input_ids, attention_mask=attention_mask)

    def shuffled(draw: int) -> dict[str, HeadScores]:
        return head_scores(model, input_ids, attention_mask=attention_mask, shuffled=draw)

    initials, permuted = null(initial), null(shuffled)
    return {name: HeadProfile(raw[name], initials[name], permuted[name]) for name in raw}


def _z(score: Tensor, draws: Tensor) -> Tensor:
    return (score - draws.mean()) / draws.std().clamp_min(1e-12)
