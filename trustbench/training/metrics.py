"""Where a run's figures go: metrics.jsonl always, other sinks through their own libraries."""

from __future__ import annotations

import errno
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from trustbench.errors import InputError
from trustbench.training.config import TrainConfig


class Sink(Protocol):
    """Takes lines of figures."""

    def write(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """out/metrics.jsonl: one line a layer every `log_every` steps.

    `position`, in bytes, goes into checkpoints; a resumed run cuts the file there, so that it reads
    as if the run had never stopped.
    """

    def __init__(self, path: Path, position: int = 0) -> None:
        # Unbuffered: nothing is left to be written when a full disk ends the run.
        self._file = path.open("ab", buffering=0)
        self._file.truncate(position)
        self.position = position

    def write(self, line: dict[str, Any]) -> None:
        data = (json.dumps(line) + "\n").encode()
        if self._file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.position += len(data)

    def close(self) -> None:
        self._file.close()


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    """{"<hook point>/<figure>": value} of one line."""
    name = line["hook_point"]
    return {
        f"{name}/{key}": value
        for key, value in line.items()
        if key not in ("step", "tokens") and isinstance(value, int | float)
    }


class TensorBoard:
    """Event files in out/tensorboard."""

    def __init__(self, library: Any, out: Path, tokens: int) -> None:
        # What a killed run drew after its last checkpoint is drawn again: the old lines are purged.
        purge = tokens + 1 if tokens else None
        self._writer = library.SummaryWriter(str(out / "tensorboard"), purge_step=purge)

    def write(self, line: dict[str, Any]) -> None:
        for key, value in _numbers(line).items():
            self._writer.add_scalar(key, value, line["tokens"])

    def close(self) -> None:
        self._writer.close()


class Tracker:
    """Weights & Biases or trackio, which share one interface: init, log, finish."""

    def __init__(self, library: Any, out: Path, config: TrainConfig) -> None:
        self._library = library
        library.init(project="trustbench", name=out.name, config=config.to_dict())

    def write(self, line: dict[str, Any]) -> None:
        self._library.log({"tokens": line["tokens"], **_numbers(line)})

    def close(self) -> None:
        self._library.finish()


def import_libraries(config: TrainConfig) -> dict[str, Any]:
    """The libraries of the sinks that the config asks for; InputError when one is missing."""
    libraries: dict[str, Any] = {}
    for name in config.sinks:
        try:
            home = "torch.utils.tensorboard" if name == "tensorboard" else name
            libraries[name] = import_module(home)
        except ImportError as error:
            raise InputError(
                f"sinks={name!r}: its library is missing: pip install 'trustbench[sinks]' ({error})"
            ) from error
    return libraries


def open_sinks(libraries: dict[str, Any], config: TrainConfig, out: Path, tokens: int) -> list[Sink]:
    """Open a sink for each library of `import_libraries`, for a run that stands at `tokens`."""
    return [
        TensorBoard(library, out, tokens) if name == "tensorboard" else Tracker(library, out, config)
        for name, library in libraries.items()
    ]
