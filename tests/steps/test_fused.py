"""The fused step equals autograd with torch.optim.Adam, step after step."""

from __future__ import annotations

import copy

import pytest
import torch

from trustbench.errors import NonFiniteError
from trustbench.sae import SAE, SAEConfig, loss
from trustbench.steps import AdamOptions, FusedStep

CASES = {
    "topk": {"activation": "topk", "auxk": 0},
    "topk+auxk": {"activation": "topk", "auxk": 8, "auxk_coefficient": 0.5},
    "batchtopk": {"activation": "batchtopk", "auxk": 4},
    "relu-sum": {"activation": "relu", "l1_form": "sum", "l1_coefficient": 0.2},
    "relu-norm": {"activation": "relu", "l1_coefficient": 0.2, "unit_norm": False},
    "relu-norm-unit": {"activation": "relu", "l1_coefficient": 0.2},
    "jumprelu": {"activation": "jumprelu", "bandwidth": 0.2, "jumprelu_threshold": 0.1},
    "jumprelu-tanh": {"activation": "jumprelu", "l0_form": "tanh", "bandwidth": 0.2},
    "jumprelu-tanh-free": {
        "activation": "jumprelu", "l0_form": "tanh", "bandwidth": 0.2, "unit_norm": False,
    },
    "matryoshka": {"activation": "matryoshka", "prefixes": [7, 30], "auxk": 4},
    "panneal": {"activation": "panneal", "l1_coefficient": 0.2, "p_anneal_start": 0.2},
    "transcoder": {"d_out": 17, "auxk": 8},
    "transcoder-skip": {"d_out": 24, "skip": True, "activation": "batchtopk", "auxk": 0},
    "transcoder-jumprelu": {"d_out": 17, "skip": True, "activation": "jumprelu", "bandwidth": 0.2},
}  # fmt: skip


def activations(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, 6) @ torch.randn(6, d) + 0.1 * torch.randn(n, d) + 0.5


@pytest.mark.parametrize("clip_norm", [0.0, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_fused_step_equals_autograd(case, clip_norm):
    cfg = SAEConfig(d_in=24, d_sae=96, k=6, normalize="expected_norm", **CASES[case])
    mine = SAE(cfg)
    mine.input_scale.fill_(0.8)
    theirs = copy.deepcopy(mine).train()
    trainer = FusedStep(mine, AdamOptions(clip_norm=clip_norm), dead_after_tokens=60)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=3e-3)
    inactive = torch.zeros(96, dtype=torch.int64)
    for number in range(20):
        x, done = activations(33, 24), number / 20
        target = activations(33, cfg.d_out) if cfg.transcoder else None
        options = {"target": target, "done": done, "penalty_scale": 0.5}
        result = trainer.step(x, 3e-3, measure=True, **options)
        if theirs.family.before is not None:
            theirs.family.before(theirs, done)
        terms = loss(theirs, x, dead=inactive >= 60, target=target)
        total = terms.total - 0.5 * terms.penalty
        optimizer.zero_grad()
        total.backward()
        if cfg.unit_norm:
            theirs.project_decoder_grad_()
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
        optimizer.step()
        if cfg.unit_norm:
            theirs.normalize_decoder_()
        if theirs.family.after is not None:
            theirs.family.after(theirs, terms.code.values.detach())
        inactive += 33
        fired = terms.code.indices.flatten()[terms.code.values.flatten() > 0].long()
        inactive[fired] = 0
        assert result.loss == pytest.approx(total.item(), rel=1e-4)
        assert result.auxk == pytest.approx(terms.auxk.item(), rel=1e-3)
        assert torch.equal(trainer.inactive, inactive)
    for (name, a), (_, e) in zip(mine.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
    if case == "topk+auxk":
        assert trainer.dead.any(), "the case must exercise AuxK"


def test_parity_with_dense_plain_pytorch_over_200_steps():
    """Same init, data and seed: losses within 1e-4 at every step, final fvu within 1 %."""
    d, F, k, n, lr = 32, 128, 8, 64, 1e-3
    sae = SAE(SAEConfig(d_in=d, d_sae=F, k=k, auxk=0))
    W_enc, W_dec, b_enc, b_dec = (
        p.detach().clone().requires_grad_() for p in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec)
    )
    optimizer = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=lr)
    trainer = FusedStep(sae)
    mixing = torch.randn(12, d)
    for _ in range(200):
        x = (torch.randn(n, 12) * (torch.rand(n, 12) < 0.3)) @ mixing
        result = trainer.step(x, lr, measure=True)
        pre = (x - b_dec) @ W_enc.T + b_enc
        top = pre.topk(k, dim=1)
        acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        x_hat = acts @ W_dec + b_dec
        plain = (x - x_hat).square().sum(1).mean()
        optimizer.zero_grad()
        plain.backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            optimizer.step()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        assert result.loss == pytest.approx(plain.item(), rel=1e-4)
    theirs = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert result.fvu == pytest.approx(theirs.item(), rel=0.01)


def test_state_round_trip_continues_bit_for_bit():
    cfg = SAEConfig(d_in=24, d_sae=96, k=6, auxk=8, activation="batchtopk")
    first = FusedStep(SAE(cfg), dead_after_tokens=60)
    batches = [activations(33, 24) for _ in range(10)]
    for x in batches[:5]:
        first.step(x, 1e-3)
    second = FusedStep(SAE(cfg), dead_after_tokens=60)
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    for x in batches[5:]:
        assert first.step(x, 1e-3) == second.step(x, 1e-3)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    with pytest.raises(KeyError, match="adam"):
        second.load_state_dict({"sae.W_enc": torch.zeros(1)})
    # A shape that broadcasts, or a dtype that converts, is another SAE's all the same.
    for wrong in (torch.zeros(1, 24), torch.zeros(96, 24, dtype=torch.float64)):
        before = second.sae.W_dec.clone()
        with pytest.raises(RuntimeError, match=r"sae\.W_enc is .* expected torch.float32 \[96, 24\]"):
            second.load_state_dict(second.state_dict() | {"sae.W_enc": wrong})
        assert torch.equal(second.sae.W_dec, before)


def test_a_loss_that_is_not_finite_stops_before_any_weight_changes():
    trainer = FusedStep(SAE(SAEConfig(d_in=24, d_sae=96, k=6)), name="layers.3")
    before = {k: v.clone() for k, v in trainer.sae.state_dict().items()}
    x = activations(5, 24)
    x[2, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"layers\.3: the loss is nan at step 1"):
        trainer.step(x, 1e-3)
    for name, tensor in trainer.sae.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_batchtopk_sets_the_threshold_that_inference_needs():
    sae = SAE(SAEConfig(d_in=24, d_sae=96, k=6, auxk=0, activation="batchtopk"))
    trainer = FusedStep(sae)
    for _ in range(30):
        trainer.step(activations(64, 24), 1e-3)
    x = activations(500, 24)
    inference = (sae.eval().encode(x) > 0).sum() / 500
    assert inference.item() == pytest.approx(6, rel=0.35)


def test_no_dense_code_is_ever_built(monkeypatch):
    """The step never allocates N x F: its largest tensor is a weight."""
    n, F = 512, 4096
    trainer = FusedStep(SAE(SAEConfig(d_in=16, d_sae=F, k=4, auxk=8)), dead_after_tokens=1000)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    sizes.append(tensor.numel())
            return out

    for _ in range(4):
        with Watch():
            trainer.step(torch.randn(n, 16), 1e-3, measure=True)
    assert max(sizes) <= max(F * 16, 2 * n * 16) < n * F / 8
