"""Passages against brute force, and which features are taken to read well."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from trustbench.data import Documents, TokenBatch, TokenStream
from trustbench.models import ActivationCapture, load_model, resolve_hook_points
from trustbench.ops import CSRCode, TopKCode
from trustbench.sae import SAE, SAEConfig
from trustbench.studies.demo import assets
from trustbench.studies.demo.passages import (
    AFTER,
    BEFORE,
    LEAST_BEFORE,
    TopPeaks,
    best_features,
    ranked,
)

F, KEPT = 9, 3


def synthetic(kind, batches=4):
    """Batches with padding on both sides of rows, their codes, and the same codes dense."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(batches):
        B, T = 3, 40
        mask = torch.ones(B, T, dtype=torch.bool)
        mask[1, 0] = mask[2, 25:] = False
        ids = torch.randint(1, 99, (B, T), generator=generator)
        n = int(mask.sum())
        # Whole numbers: ties are everywhere.
        dense = torch.randint(0, 6, (n, F), generator=generator).float()
        dense *= torch.rand(n, F, generator=generator) < 0.4
        if kind == "topk":
            values, indices = dense.topk(4, dim=1)
            dense = torch.zeros(n, F).scatter(1, indices, values)
            code = TopKCode(values, indices.int())
        else:
            rows, indices = dense.nonzero(as_tuple=True)
            offsets = torch.cat([torch.zeros(1), torch.bincount(rows, minlength=n).cumsum(0)])
            code = CSRCode(offsets.long(), indices.int(), dense[rows, indices])
        yield TokenBatch(ids, mask), code, dense


@pytest.mark.parametrize("kind", ["topk", "csr"])
def test_peaks_equal_brute_force(kind):
    top = TopPeaks(F, KEPT)
    rows = []  # (ids of a row, activations [tokens, F]), unmasked tokens only
    for batch, code, dense in synthetic(kind):
        top.add(code, batch)
        parts = dense.split(batch.mask.sum(1).tolist())
        rows += [(i[m].tolist(), d) for i, m, d in zip(*batch, parts, strict=True)]
    acts = torch.cat([d for _, d in rows])
    assert top.tokens_seen == len(acts)
    assert torch.equal(top.count, (acts > 0).sum(0))
    assert torch.equal(top.largest, acts.amax(0))
    for f in range(F):
        peaks = []
        for ids, d in rows:
            value, place = d[LEAST_BEFORE:, f].max(0)  # of equal ones the first
            peaks.append((value.item(), int(place) + LEAST_BEFORE, ids, d[:, f].tolist()))
        peaks.sort(key=lambda peak: -peak[0])  # stable: earlier rows win ties
        for slot, (value, place, ids, column) in enumerate(peaks[:KEPT]):
            assert top.value[f, slot] == value > 0
            for i, t in enumerate(range(place - BEFORE, place + AFTER + 1)):
                inside = 0 <= t < len(ids)
                assert top.ids[f, slot, i] == (ids[t] if inside else -1)
                assert top.acts[f, slot, i] == (column[t] if inside else 0)


def test_memory_does_not_grow_with_the_text():
    def size(top):
        return sum(t.numel() for t in vars(top).values() if isinstance(t, torch.Tensor))

    top = TopPeaks(F, KEPT)
    before = size(top)
    for batch, code, _ in synthetic("topk", batches=20):
        top.add(code, batch)
    assert size(top) == before


def test_a_batch_without_activations_is_fine():
    top = TopPeaks(F, KEPT)
    batch = TokenBatch(torch.ones(1, 8, dtype=torch.int64), torch.ones(1, 8, dtype=torch.bool))
    top.add(TopKCode(torch.zeros(8, 2), torch.zeros(8, 2, dtype=torch.int32)), batch)
    assert top.tokens_seen == 8 and top.count.sum() == 0 and (top.value == 0).all()
    assert ranked(top, torch.eye(4)) == ([], [])


def test_ranking_tells_kinds_from_single_tokens():
    top = TopPeaks(6, 4)
    top.tokens_seen = 10_000
    top.count[:] = 50
    top.value[:] = 2.0
    tokens = [
        [1, 1, 1, 1],  # one token
        [1, 1, 1, 1],  # the same, weaker
        [2, 3, 2, 3],  # two tokens alike
        [1, 2, 4, 5],  # no two alike
        [4, 4, 4, 4],  # one token, but active too often
        [5, 5, 5, 5],  # one token, but not enough peaks
    ]
    top.ids[:, :, BEFORE] = torch.tensor(tokens).int()
    top.value[1] = 1.0
    top.count[4] = 5000
    top.value[5, -1] = 0.0
    meaning = torch.eye(6)
    meaning[3] = meaning[2] + 0.1 * meaning[3]
    kinds, words = ranked(top, meaning)
    assert kinds[0] == 2
    assert words[0] == 0 and 1 not in words
    assert not {4, 5} & {*kinds, *words}


def test_best_features_of_a_model():
    model, tokenizer = load_model(str(assets.MODEL))
    name = "gpt_neox.layers.2"
    sae = SAE(SAEConfig(d_in=256, d_sae=512, k=4)).eval()

    def rows():
        stream = TokenStream(Documents(str(assets.HELDOUT_TEXT)), tokenizer, 64, 16, repeat=False)
        return islice(stream, 12)

    found = best_features({name: sae}, model, tokenizer, rows(), features=4, passages=2)[name]
    assert len(found) == 4 and len({feature.number for feature in found}) == 4
    capture = ActivationCapture(model, resolve_hook_points(model, [name]))
    acts = torch.cat([sae.encode(capture.run(b.input_ids)[name][b.mask]) for b in rows()])
    text = "".join(tokenizer.decode(b.input_ids[b.mask]) for b in rows())
    unembedding = model.get_output_embeddings().weight
    for feature in found:
        column = acts[:, feature.number]
        assert feature.largest == pytest.approx(column.max().item())
        assert feature.density == pytest.approx((column > 0).float().mean().item())
        raised = (unembedding - unembedding.mean(0)) @ sae.W_dec[feature.number]
        assert feature.promoted[0] == tokenizer.decode([int(raised.argmax())])
        assert len(feature.passages) == 2
        peaks = [p.activations[p.peak] for p in feature.passages]
        assert peaks == sorted(peaks, reverse=True) and 0 < peaks[0] <= feature.largest
        for passage in feature.passages:
            assert "".join(passage.tokens) in text
