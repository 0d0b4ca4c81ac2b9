"""Which device a job runs on."""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor

from trustbench.errors import bad

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}
# What a field may name; "auto" depends on the device (`dtype`).
Dtype = Literal["auto", "fp32", "bf16"]
BufferDtype = Literal["auto", "fp32", "bf16", "fp16", "fp8"]
StoredDtype = Literal["fp32", "bf16", "fp16"]
StateDtype = Literal["fp32", "bf16"]


def resolve(name: str) -> torch.device:
    """The torch.device of "auto" (a GPU, else the CPU), "cpu", "cuda" or "cuda:N".

    Where no number is given it is the first GPU; the processes of a machine that torchrun starts have
    one each, in order. Raises InputError when there is no such device.
    """
    count = torch.cuda.device_count()
    local = int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        return torch.device("cuda", local) if local < count else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise bad("device", name, "auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise bad("device", name, "auto, cpu, cuda or cuda:N")
    index = local if device.index is None else device.index
    if index >= count:
        found = f"{count} CUDA devices" if count else "no CUDA device"
        raise bad("device", name, f"a device that is there; torch sees {found}")
    return torch.device("cuda", index)


def dtype(name: str, device: torch.device) -> torch.dtype:
    """ "fp32", "bf16", "fp16" or "fp8"; "auto" is bf16 on a GPU, else fp32."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    return DTYPES[name]


def sent(host: Tensor, device: torch.device) -> Tensor:
    """A host tensor on a device; a GPU is not waited for, and the host is not held up."""
    if device.type != "cuda":
        return host
    return host.pin_memory().to(device, non_blocking=True)
