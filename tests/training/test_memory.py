"""The memory a run on a GPU needs, on paper."""

from __future__ import annotations

import pytest

from trustbench.errors import InputError
from trustbench.sae import SAEConfig
from trustbench.training import TrainConfig
from trustbench.training.memory import check, predict

PYTHIA = {f"gpt_neox.layers.{i}": (1024, 0) for i in range(24)}
KEPT = 24 * 1024
MODEL = 810_000_000  # bytes of Pythia-410M in bf16


def config(**changes) -> TrainConfig:
    sae = SAEConfig(d_sae=32768, k=64)
    fields = {"model": "m", "data": "d", "out": "o", "tokens": 10**9, "sae": sae, "batch_size": 16384}
    return TrainConfig(**fields | {"context_length": 1024, "model_rows": 16} | changes)


def test_24_layers_of_pythia_410m_stay_under_48_gb():
    needed = predict(config(), PYTHIA, KEPT, MODEL)
    assert needed.weights == pytest.approx(24 * 2 * 32768 * 1024 * 6, rel=0.01)
    assert needed.state == pytest.approx(24 * 2 * 32768 * 1024 * 8, rel=0.01)
    assert needed.buffer == 16 * 16384 * 24 * 1024 * 2
    assert 1.04 * needed.total < 48e9


def test_bf16_state_in_groups_of_layers_stays_under_24_gb():
    changes = {"state_dtype": "bf16", "buffer_tokens": 4 * 16384}
    needed = predict(config(**changes), dict(list(PYTHIA.items())[:12]), KEPT // 2, MODEL)
    assert 1.04 * needed.total < 24e9


def test_what_fits_is_said_in_a_line():
    line = check(predict(config(), PYTHIA, KEPT, MODEL), 139e9, config(), len(PYTHIA))
    assert line.startswith("needs ") and line.endswith("the card has 139.0 GB free")


@pytest.mark.parametrize(
    ("free", "changes", "advice"),
    [
        (35e9, {}, r"it would fit with --buffer_tokens \d+$"),
        (
            22e9,
            {},
            r"--buffer_tokens \d+ and --state_dtype bf16 and --layers with at most \d+",
        ),
        (44e9, {"buffer_dtype": "fp32"}, "it would fit with --buffer_dtype bf16$"),
        (1e9, {}, "a smaller batch_size or d_sae"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_settings_that_would(free, changes, advice):
    mine = config(**changes)
    with pytest.raises(InputError, match=f"needs .* GB .*{advice}"):
        check(predict(mine, PYTHIA, KEPT, MODEL), free, mine, len(PYTHIA))


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "batchtopk"])
def test_every_activation_has_a_figure(activation):
    sae = SAEConfig(d_sae=32768, k=64, activation=activation)
    topk = predict(config(), PYTHIA, KEPT, MODEL)
    assert predict(config(sae=sae), PYTHIA, KEPT, MODEL).step > 0.2 * topk.step
