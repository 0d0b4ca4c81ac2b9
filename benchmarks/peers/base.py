"""What a contender is: one way to do a job, by us or by a peer, in whatever environment has it."""

from __future__ import annotations

import contextlib
import importlib.metadata
from typing import Any

import torch


class Contender:
    """`run(prepare())` does the job; `run` alone is timed. Made with the options of its case."""

    version = torch.__version__
    repeats = 1  # calls of `run` in one timing, whose seconds are of one call

    def prepare(self) -> Any:
        """What the next `run` works on."""

    def run(self, given: Any) -> Any:
        """The job."""
        raise NotImplementedError

    def more(self) -> dict[str, float]:
        """Further figures, asked for at the end."""
        return {}


def autocast(bf16: bool, device: str) -> Any:
    """Matmuls in bf16, on a CPU too, where a peer's own trainer asks for it on a GPU alone."""
    return torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext()


def version_of(distribution: str) -> str:
    """The installed version."""
    return importlib.metadata.version(distribution)
