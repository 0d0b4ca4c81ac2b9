"""Where there is a GPU, Triton's cells of every table run on it, and a shape more that fills it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.ops.cases import FILLING


@pytest.fixture(autouse=True)
def _on_the_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """All tensors of such a cell are made there."""
    parameters = getattr(request.node, "callspec", None)
    values = parameters.params if parameters else {}
    triton = values.get("isa") == "triton"
    if values.get("shape") == FILLING and not triton:
        pytest.skip("a shape for the GPU")
    if not (triton and torch.cuda.is_available()):
        yield
        return
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)
