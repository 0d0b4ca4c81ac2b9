"""Checkpoints: a directory that holds everything the next step depends on.

    out/checkpoint/state.json             step, tokens, data position, buffer counters, RNG, config
    out/checkpoint/buffer.safetensors     the buffered activations
    out/checkpoint/layer_<i>.safetensors  one SAE with its optimiser state

It is written beside its place and renamed, so a kill at any moment leaves a whole one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trustbench import files
from trustbench.buffer import ActivationBuffer
from trustbench.data import TokenStream
from trustbench.errors import CheckpointError
from trustbench.train.config import MAY_CHANGE, TrainConfig
from trustbench.train.step import LayerTrainer

FORMAT = "trustbench-checkpoint-1"


def save(
    out: Path,
    progress: Mapping[str, Any],
    stream: TokenStream,
    buffer: ActivationBuffer,
    trainers: Mapping[str, LayerTrainer],
) -> None:
    """Write out/checkpoint. An OSError (a full disk, say) leaves the previous one as it was."""
    held = buffer.state_dict()
    state = {
        "format": FORMAT,
        "progress": dict(progress),
        "hook_points": list(trainers),
        "stream": stream.state_dict(),
        "buffer": held["meta"],
    }
    try:
        with files.atomic_dir(out / "checkpoint") as directory:
            for i, trainer in enumerate(trainers.values()):
                files.save_tensors(directory / f"layer_{i}.safetensors", trainer.state_dict())
            files.save_tensors(directory / "buffer.safetensors", held["tensors"])
            files.atomic_write_json(directory / "state.json", state)
    except OSError as error:
        raise CheckpointError(
            f"{out}/checkpoint: not written ({error}); the previous checkpoint is intact,"
            " and the same command resumes from it"
        ) from error


def load(
    out: Path,
    stream: TokenStream,
    buffer: ActivationBuffer,
    trainers: Mapping[str, LayerTrainer],
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
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{directory}/state.json: expected format {FORMAT!r}")
    if state["hook_points"] != list(trainers):
        raise CheckpointError(f"{directory}: holds other hook points: {state['hook_points']}")
    for i, trainer in enumerate(trainers.values()):
        path = directory / f"layer_{i}.safetensors"
        tensors = files.load_tensors(path)
        try:
            trainer.load_state_dict(tensors)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{path}: does not fit this run ({error})") from error
    held = files.load_tensors(directory / "buffer.safetensors")
    buffer.load_state_dict({"tensors": held, "meta": state["buffer"]})
    stream.load_state_dict(state["stream"])
    return state["progress"]


def check_same_run(out: Path, config: TrainConfig) -> None:
    """Refuse a directory that holds another run, or something that is no run."""
    path = out / "config.json"
    if not path.exists():
        if out.is_dir() and any(out.iterdir()):
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


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"sae": {"k": 1}} as {"sae.k": 1}."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
