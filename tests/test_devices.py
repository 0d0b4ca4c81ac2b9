"""Which device a job runs on."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from trustbench import devices
from trustbench.errors import InputError


def test_auto_is_the_first_gpu_or_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices.resolve("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.resolve("auto") == torch.device("cuda", 0)
    assert devices.resolve("cuda") == torch.device("cuda", 0)
    assert devices.resolve("cuda:1") == torch.device("cuda", 1)
    assert devices.resolve("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "device='gpu': expected auto, cpu, cuda or cuda:N"),
        ("mps", "device='mps': expected auto, cpu, cuda or cuda:N"),
        ("cuda:3", "device='cuda:3'.*torch sees 2 CUDA devices"),
    ],
)
def test_a_device_that_is_not_there_is_named(monkeypatch, name, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=message):
        devices.resolve(name)


def test_dtypes_that_configs_name_are_known():
    for names in (devices.Dtype, devices.BufferDtype, devices.StoredDtype, devices.StateDtype):
        assert set(get_args(names)) <= {"auto", *devices.DTYPES}
