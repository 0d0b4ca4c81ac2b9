"""The step on Triton kernels equals the step on the CPU, step after step (in the interpreter)."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.steps.test_fused import CASES, activations
from trustbench import ops
from trustbench.errors import NonFiniteError
from trustbench.sae import SAE, SAEConfig
from trustbench.steps import AdamOptions, AutogradStep, FusedStep, pick, triton
from trustbench.steps.triton import TritonStep

FUSED = list(CASES)


def pair(case: str, adam=None, **options):
    """The same SAE in a FusedStep and in a TritonStep."""
    cfg = SAEConfig(d_in=24, d_sae=30, k=6, normalize="expected_norm", **CASES[case])
    sae = SAE(cfg)
    sae.input_scale.fill_(0.8)
    shared = {"dead_after_tokens": 40}
    there = TritonStep(copy.deepcopy(sae), adam, **shared, **options)
    return FusedStep(sae, adam, **shared), there


@pytest.mark.parametrize(
    ("case", "dense_above"),
    [(name, float("inf")) for name in FUSED] + [(n, 0.0) for n in FUSED if n.startswith("relu")],
)
@pytest.mark.parametrize("clip_norm", [0.0, 0.7])
def test_equals_the_step_on_the_cpu(case, dense_above, clip_norm):
    mine, theirs = pair(
        case, AdamOptions(clip_norm=clip_norm), compute_dtype=torch.float32, dense_above=dense_above
    )
    theirs.l0 = 100.0  # dense or sparse from the first step on
    for number in range(4):
        x = activations(17, 24)
        options = {"penalty_scale": 0.5, "done": 0.3 * number, "measure": True}
        if mine.sae.cfg.transcoder:
            options["target"] = activations(17, mine.sae.cfg.d_out)
        expected = mine.step(x, 3e-3, **options)
        found = theirs.step(x, 3e-3, **options)
        for name, e in expected._asdict().items():
            assert getattr(found, name) == pytest.approx(e, rel=1e-4, abs=1e-6), name
        assert torch.equal(theirs.inactive, mine.inactive)
    state, wanted = theirs.state_dict(), mine.state_dict()
    for name, e in wanted.items():
        torch.testing.assert_close(state[name], e, rtol=1e-3, atol=1e-4, equal_nan=True, msg=name)


@pytest.mark.parametrize(
    ("case", "moment_dtype"), [("topk", torch.bfloat16), ("relu-sum", torch.float32)]
)
def test_bf16_learns_as_well(case, moment_dtype):
    mine, theirs = pair(case, moment_dtype=moment_dtype)
    assert theirs.moments.m_W_enc.dtype == moment_dtype
    for step in range(8):
        x = activations(32, 24)
        expected = mine.step(x, 1e-2, measure=True)
        found = theirs.step(x, 1e-2, measure=step % 4 == 3)
    assert found.fvu == pytest.approx(expected.fvu, rel=0.05)
    for weights, copied in zip(theirs.weights, theirs.copies, strict=False):
        # The interpreter cuts off what a GPU rounds.
        torch.testing.assert_close(weights.bfloat16(), copied, rtol=2**-7, atol=0)


def test_a_loss_that_is_not_finite_changes_nothing_and_is_reported():
    _, trainer = pair("topk")
    x = activations(8, 24)
    trainer.step(x, 1e-2)
    before = {name: t.clone() for name, t in trainer.state_dict().items()}
    x[3, 3] = float("nan")
    trainer.step(x, 1e-2)
    after = trainer.state_dict()
    for name in before:
        if name.startswith(("sae.", "adam.")):
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=0, equal_nan=True)
    with pytest.raises(NonFiniteError, match="not finite at step 2; that step changed no weight"):
        trainer.step(activations(8, 24), 1e-2, measure=True)


@pytest.mark.parametrize("case", ["topk+auxk", "relu-norm"])
def test_a_restored_trainer_goes_on_bit_for_bit(case):
    options = {"moment_dtype": torch.bfloat16, "compute_dtype": torch.float32}
    (_, one), (_, other) = pair(case, **options), pair(case, **options)
    batches = [activations(17, 24) for _ in range(4)]
    for x in batches[:3]:
        one.step(x, 1e-2, measure=True)
    other.load_state_dict({name: t.clone() for name, t in one.state_dict().items()})
    for x in batches[3:]:
        one.step(x, 1e-2, measure=True)
        other.step(x, 1e-2, measure=True)
    theirs = other.state_dict()
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_gated_has_a_step_of_its_own():
    sae = SAE(SAEConfig(d_in=24, d_sae=30, activation="gated"))
    with ops.use("triton"):
        assert isinstance(pick(sae), AutogradStep)


@pytest.mark.parametrize("case", ["relu-norm", "batchtopk", "topk+auxk", "jumprelu", "matryoshka"])
@pytest.mark.parametrize("measure", [True, False])
def test_a_step_without_room_is_done_again(monkeypatch, case, measure):
    mine, theirs = pair(case, compute_dtype=torch.float32, dense_above=float("inf"))
    theirs.l0 = 1.0
    exact, run = [], TritonStep._run

    def watched(self, x, target, **how):
        exact.append(bool(how.get("exact")))
        run(self, x, target, **how)

    monkeypatch.setattr(TritonStep, "_run", watched)
    monkeypatch.setattr(triton, "room", lambda most: 1)
    ties = torch.zeros(17, 24)  # many pre-activations equal the batch's bound
    for trainer in (mine, theirs) if case in ("batchtopk", "matryoshka") else ():
        trainer.weights.b_enc.fill_(1.0)
    for step in range(3):
        x = ties if case in ("batchtopk", "matryoshka") and step == 0 else activations(17, 24)
        theirs.finish_pending()
        for trainer in (mine, theirs) if "auxk" in case else ():
            trainer.inactive[:9] = 60  # dead
        theirs.dead_count = int("auxk" in case)
        mine.step(x, 3e-3, measure=measure)
        theirs.step(x, 3e-3, measure=measure)
        assert theirs.steps == mine.steps == step + 1
    state, wanted = theirs.state_dict(), mine.state_dict()  # which settles the last one
    assert exact[:2] == [False, True]
    for name, e in wanted.items():
        torch.testing.assert_close(state[name], e, rtol=1e-3, atol=1e-4, equal_nan=True, msg=name)


@pytest.mark.parametrize("case", ["topk+auxk", "relu-norm", "jumprelu-tanh", "matryoshka"])
def test_what_a_graph_holds_depends_on_no_step(case):
    """Everything that changes from step to step is on the device: a replay sees the new scalars."""
    _, one = pair(case, compute_dtype=torch.float32, dense_above=float("inf"))
    _, other = pair(case, compute_dtype=torch.float32, dense_above=float("inf"))
    other.load_state_dict({name: t.clone() for name, t in one.state_dict().items()})
    one.l0 = other.l0 = 20.0
    x = activations(17, 24)
    one.step(x, 1e-2, penalty_scale=0.3)
    # As a replay does it: the scalars of the step, then what was captured without knowing them.
    scaled = other.sae.scaled(x, other.compute_dtype)
    other.steps += 1
    other._send_scalars(triton.Batch(scaled, None, 1e-2, 0.3))
    other._run(scaled, None)
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        assert torch.equal(mine, theirs)


def test_l0_is_asked_for_when_it_was_never_seen():
    mine, theirs = pair("relu-sum", compute_dtype=torch.float32, dense_above=float("inf"))
    x = activations(17, 24)
    mine.step(x, 1e-2)
    theirs.step(x, 1e-2)
    assert 0 < theirs.l0 <= 30
    torch.testing.assert_close(theirs.weights.W_dec, mine.weights.W_dec)


def test_auxk_is_left_out_once_no_feature_is_dead():
    mine, theirs = pair("topk+auxk", compute_dtype=torch.float32)
    theirs.dead_count = 3  # as of the last measurement; by now all have come back
    x = activations(17, 24)
    expected, found = mine.step(x, 1e-2, measure=True), theirs.step(x, 1e-2, measure=True)
    assert found.auxk == expected.auxk == 0.0
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
