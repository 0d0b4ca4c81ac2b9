"""Checkpoints: a directory that holds everything the next step depends on.

    out/checkpoint/state.json             step, tokens, data position, buffer counters, RNG, checksums
    out/checkpoint/buffer_<i>.safetensors the buffered activations of one hook point
    out/checkpoint/layer_<i>.safetensors  one SAE (of one wiring) with its optimiser state

It is written beside its place and renamed, so a kill at any moment leaves a whole one. Activations
that the buffer has spilled to disk stay in its files, which state.json names with their checksums.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from trustbench import files
from trustbench.activations import Source
from trustbench.buffer import ActivationBuffer
from trustbench.errors import CheckpointError, DataError, InputError, bad
from trustbench.steps import Step
from trustbench.training.config import MAY_CHANGE, TrainConfig
from trustbench.training.sharding import Sharding

FORMAT = "trustbench-checkpoint-4"
_STATE = {"format", "progress", "wirings", "hook_points", "source", "buffer", "checksums"}


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Inside the block `target` is written; a full disk, say, raises one clear CheckpointError."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors words the system's errors itself
        raise CheckpointError(
            f"{target}: not written ({error}); what was there before is intact, and the same command"
            " continues from the last checkpoint, if there is one"
        ) from error


def save(
    out: Path,
    progress: Mapping[str, Any],
    source: Source,
    buffer: ActivationBuffer,
    steps: Mapping[str, Step],
    sharding: Sharding,
) -> None:
    """Write out/checkpoint; CheckpointError, with the previous one as it was, when it cannot be.

    What is written does not depend on the number of processes: each writes whole files of some hook
    points.
    """
    held = buffer.state_dict()
    team, points = sharding.team, list(sharding.widths)
    with writing(out / "checkpoint"), team.directory(out / "checkpoint") as directory:
        sums: dict[str, int] = {}

        def write(name: str, tensors: dict[str, Tensor]) -> None:
            path = directory / f"{name}.safetensors"
            files.save_tensors(path, tensors)
            sums[path.name] = files.checksum(path)

        # All ranks that hold some of it make it whole, and one of them writes it; one at a time.
        for i, name in enumerate(sharding.names):
            mine = steps[name].state_dict() if name in steps else {}
            with team.together():
                if sharding.writes(name):
                    write(f"layer_{i}", mine)
        for i, name in enumerate(points):
            rows = None
            if name in sharding.kept_widths:
                rows = sharding.whole_stored(name, held["tensors"][name])
            with team.together():
                if rows is not None and sharding.stores(name):
                    write(f"buffer_{i}", {name: rows})
        checksums = {name: crc for part in team.objects(sums) for name, crc in part.items()}
        if team.rank == 0:
            state = {
                "format": FORMAT,
                "progress": dict(progress),
                "wirings": sharding.names,
                "hook_points": points,
                "source": source.state_dict(),
                "buffer": held["meta"],
                "checksums": checksums,
            }
            files.atomic_write_json(directory / "state.json", state)
    buffer.saved()


def load(
    out: Path,
    source: Source,
    buffer: ActivationBuffer,
    steps: Mapping[str, Step],
    sharding: Sharding,
) -> dict[str, Any] | None:
    """Restore what `save` wrote into these objects; the progress, or None without a checkpoint.

    Raises
    ------
    CheckpointError
        Naming the file that is missing, truncated, corrupt or another run's.
    """
    directory = files.surviving_dir(out / "checkpoint")
    if directory is None:
        return None
    state = files.read_json(directory / "state.json")
    if not isinstance(state, dict) or state.get("format") != FORMAT or state.keys() != _STATE:
        raise CheckpointError(f"{directory}/state.json: expected format {FORMAT!r}, whole")
    if state["hook_points"] != list(sharding.widths) or state["wirings"] != sharding.names:
        raise CheckpointError(f"{directory}: holds other hook points: {state['hook_points']}")
    for name, step in steps.items():
        path = directory / f"layer_{sharding.names.index(name)}.safetensors"
        tensors = _verified(path, state["checksums"])
        try:
            step.load_state_dict(tensors)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{path}: does not fit this run ({error})") from error
    held = _BufferFiles(directory, sharding, state["checksums"])
    try:
        buffer.load_state_dict({"tensors": held, "meta": state["buffer"]})
    except (InputError, DataError, KeyError) as error:
        raise CheckpointError(f"{directory}: its buffer does not fit this run ({error})") from error
    source.load_state_dict(state["source"])
    return state["progress"]


class _BufferFiles(Mapping[str, Tensor]):
    """A rank's part of the buffer's rows of a checkpoint, read when they are asked for."""

    def __init__(self, directory: Path, sharding: Sharding, checksums: Mapping[str, int]) -> None:
        self._directory, self._sharding, self._checksums = directory, sharding, checksums

    def __getitem__(self, name: str) -> Tensor:
        place = list(self._sharding.widths).index(name)
        path = self._directory / f"buffer_{place}.safetensors"
        return self._sharding.part_stored(name, _verified(path, self._checksums)[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._sharding.kept_widths)

    def __len__(self) -> int:
        return len(self._sharding.kept_widths)


def _verified(path: Path, checksums: Mapping[str, int]) -> dict[str, Tensor]:
    tensors = files.load_tensors(path)
    if files.checksum(path) != checksums.get(path.name):
        raise CheckpointError(f"{path}: corrupt (its checksum is not the one in state.json)")
    return tensors


def check_same_run(out: Path, config: TrainConfig) -> None:
    """Refuse a path where no directory can be, another run, or something that is no run."""
    standing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        raise bad("out", str(out), f"a directory to write in; {standing} is not one")
    path = out / "config.json"
    if not path.exists():
        # A killed process may have spilled activations before its first line.
        if out.is_dir() and set(out.iterdir()) - {*_leftovers(out), out / "spill"}:
            raise CheckpointError(
                f"out={str(out)!r}: not empty and no trustbench run (it has no config.json);"
                " expected a new or empty directory"
            )
        return
    saved, mine = _flat(files.read_json(path)), _flat(config.to_dict())
    for name in sorted((saved.keys() | mine.keys()) - MAY_CHANGE):
        if saved.get(name) != mine.get(name):
            raise CheckpointError(
                f"out={str(out)!r} holds a run of another config:"
                f" {name}={saved.get(name)!r} there, {mine.get(name)!r} here"
            )


def remove_leftovers(out: Path) -> None:
    """Remove what a killed process was still writing: a checkpoint's worth of disk each."""
    for path in _leftovers(out):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _leftovers(out: Path) -> list[Path]:
    """The temporary names of trustbench.files beside what a run writes."""
    found = [p for n in ("config.json", "checkpoint", "final") for p in out.glob(f".{n}.*.tmp")]
    return found + list((out / "snapshots").glob(".*.tmp"))


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"sae": {"k": 1}} as {"sae.k": 1}."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
