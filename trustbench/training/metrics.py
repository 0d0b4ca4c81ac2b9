"""Where metrics go besides metrics.jsonl: other sinks, through their own libraries."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from trustbench.errors import InputError
from trustbench.training.config import TrainConfig


class Sink(Protocol):
    """Takes rows of metrics.jsonl."""

    def append(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """{"<hook point>/<metric>": value} of one row."""
    name = row["hook_point"]
    return {
        f"{name}/{key}": value
        for key, value in row.items()
        if key not in ("step", "tokens") and isinstance(value, int | float)
    }


class TensorBoard:
    """Event files in out/tensorboard."""

    def __init__(self, library: Any, out: Path, tokens: int) -> None:
        # What a killed run drew after its last checkpoint is drawn again: the old rows are purged.
        purge = tokens + 1 if tokens else None
        self._writer = library.SummaryWriter(str(out / "tensorboard"), purge_step=purge)

    def append(self, row: dict[str, Any]) -> None:
        for key, value in _numbers(row).items():
            self._writer.add_scalar(key, value, row["tokens"])

    def close(self) -> None:
        self._writer.close()


class Tracker:
    """Weights & Biases or trackio, which share one interface: init, log, finish."""

    def __init__(self, library: Any, out: Path, config: TrainConfig) -> None:
        self._library = library
        library.init(project="trustbench", name=out.name, config=config.to_dict())

    def append(self, row: dict[str, Any]) -> None:
        self._library.log({"tokens": row["tokens"], **_numbers(row)})

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
