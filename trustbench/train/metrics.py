"""Where a run's figures go: metrics.jsonl always, other sinks through their own libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from trustbench.errors import InputError
from trustbench.train.config import TrainConfig


class Sink(Protocol):
    """Takes lines of figures."""

    def write(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """out/metrics.jsonl: one line a layer every `log_every` steps.

    `position` goes into checkpoints; a resumed run cuts the file there, so that it reads as if the
    run had never stopped.
    """

    def __init__(self, path: Path, position: int = 0) -> None:
        self._file = path.open("a+", encoding="utf-8")
        self._file.truncate(position)
        self._file.seek(position)

    @property
    def position(self) -> int:
        """Bytes written and flushed."""
        self._file.flush()
        return self._file.tell()

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

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

    def __init__(self, out: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"))

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


def open_sinks(config: TrainConfig, out: Path) -> list[Sink]:
    """The sinks that the config asks for; InputError when a library is missing."""
    sinks: list[Sink] = []
    for name in config.sinks:
        try:
            if name == "tensorboard":
                sinks.append(TensorBoard(out))
            elif name == "wandb":
                import wandb

                sinks.append(Tracker(wandb, out, config))
            else:
                import trackio

                sinks.append(Tracker(trackio, out, config))
        except ImportError as error:
            raise InputError(
                f"sinks={name!r}: its library is missing: pip install 'trustbench[sinks]' ({error})"
            ) from error
    return sinks
