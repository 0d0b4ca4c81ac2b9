"""Two things at a time on one GPU: the model's forward beside the training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Streams:
    """A second stream of a CUDA device; on the CPU everything happens in order.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._second = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is started inside runs after all that was started before, beside what comes next."""
        if self._second is None:
            yield
            return
        self._second.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._second):
            yield

    def join(self) -> None:
        """What comes next runs after what was started beside it."""
        if self._second is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._second)
