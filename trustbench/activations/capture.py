"""capture(): a text through a model, onto the disk, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trustbench import devices, files
from trustbench.activations.cache import (
    ActivationCache,
    CacheWriter,
    Rows,
    check_disk,
    token_bytes,
)
from trustbench.activations.config import ActivationsConfig
from trustbench.activations.sources import ModelSource
from trustbench.devices import StoredDtype
from trustbench.errors import CheckpointError, DataError, bad
from trustbench.fields import NonEmptyStr, NonNegativeInt, PositiveInt
from trustbench.models.hook_points import Site

# What may differ between a capture and its continuation.
_MAY_CHANGE = {"out", "device"}
_SHARD_BYTES = 500_000_000


@dataclass(frozen=True, kw_only=True)
class CaptureConfig(ActivationsConfig):
    """What is captured, and where to.

    Parameters
    ----------
    model, data, context_length, ..., layers, site
        What is read, by which model, and where: see TextConfig and ActivationsConfig.
    out
        The cache's directory. If it holds a part of this capture already, capturing goes on there.
    tokens
        Tokens to capture; fewer when the text ends before.
    dtype
        fp32, bf16 or fp16: how activations are stored.
    shard_tokens
        Tokens a file, about: what a killed process loses at most, and what is held in memory
        twice. 0: about 500 MB.
    """

    out: NonEmptyStr
    tokens: PositiveInt
    dtype: StoredDtype = "bf16"
    shard_tokens: NonNegativeInt = 0


def capture(config: CaptureConfig, *, progress: bool = True) -> ActivationCache:
    """Write a model's activations on a text to disk, once, to train on many times.

    The same call continues a capture that was stopped.

    Parameters
    ----------
    config : CaptureConfig
    progress : bool
        Say what it needs and what it wrote, and show a progress bar.

    Returns
    -------
    ActivationCache
        TrainConfig(activations=config.out) trains on it.

    Raises
    ------
    InputError, DataError, NonFiniteError
        Each says what is wrong in one sentence; what was captured before it is kept.
    """
    out = Path(config.out)
    _check_same(out, config)
    if (out / "index.json").exists() and (done := ActivationCache(out)).complete:
        return done
    device = devices.resolve(config.device)
    dtype = devices.dtype(config.model_dtype, device)
    source = ModelSource(config, device, dtype, repeat=False)
    needs = check_disk(out, source.widths, config.tokens, config.dtype)
    if progress:
        print(needs)
    aliases = {p.name: [*p.aliases, *_number(p, config.site)] for p in source.points}
    shard = config.shard_tokens or max(1, _SHARD_BYTES // token_bytes(source.widths, config.dtype))
    writer = CacheWriter(out, config.to_dict(), source.widths, aliases, shard)
    if writer.position is not None:
        source.load_state_dict(writer.position)
    with tqdm(
        total=config.tokens, initial=writer.tokens, unit="tok", unit_scale=True, disable=not progress
    ) as bar:
        while writer.tokens < config.tokens:
            try:
                rows = source.pull()
            except StopIteration:
                break
            rows = _first(rows, config.tokens - writer.tokens)
            writer.add(rows, source.state_dict())
            bar.update(len(rows.token_ids))
    if not writer.tokens:
        raise DataError(f"data={config.data!r}: no tokens to capture")
    writer.flush(source.state_dict(), complete=True)
    cache = ActivationCache(out)
    if progress:
        size = sum(shard.bytes for shard in cache.shards)
        print(f"{cache.tokens} tokens, {len(cache.shards)} shards, {size / 1e9:.2f} GB: {out}")
    return cache


def _number(point: Any, site: Site) -> list[str]:
    """The layer's number, for the hook point that numbers mean."""
    return [str(point.layer)] if point.site == site else []


def _first(rows: Rows, n: int) -> Rows:
    return Rows(
        {name: a[:n] for name, a in rows.acts.items()}, rows.token_ids[:n], rows.positions[:n]
    )


def _check_same(out: Path, config: CaptureConfig) -> None:
    """Refuse another capture's directory, or one that is no cache."""
    if out.exists() and not out.is_dir():
        raise bad("out", str(out), "a directory")
    if not (out / "index.json").exists():
        if out.is_dir() and any(not file.name.startswith((".", "shard_")) for file in out.iterdir()):
            raise bad("out", str(out), "an empty or new directory, or an activation cache")
        return
    try:
        saved = files.read_json(out / "index.json")["settings"]
    except (CheckpointError, KeyError, TypeError) as error:
        raise DataError(f"{out}/index.json: no index of an activation cache ({error})") from error
    for name, mine in config.to_dict().items():
        if name not in _MAY_CHANGE and saved.get(name) != mine:
            raise bad(
                "out",
                str(out),
                f"a cache of this capture; its {name} is {saved.get(name)!r}, not {mine!r}",
            )
