"""train(): text -> model forward -> buffer -> one step on every layer, until the tokens are used."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from trustbench import devices, files
from trustbench.activations import ActivationCache, CacheSource, ModelSource, SharedSource, Source
from trustbench.buffer import ActivationBuffer
from trustbench.errors import DataError, NonFiniteError, TrustbenchError, bad
from trustbench.report import TableWriter, about, write_about
from trustbench.sae import SAE, load_saes
from trustbench.sae.init import initialise
from trustbench.sae.wiring import Wiring
from trustbench.steps import AdamOptions, Step, pick
from trustbench.steps.device import GraphMemory
from trustbench.team import Team
from trustbench.training import checkpoint, memory, schedule
from trustbench.training.config import TrainConfig
from trustbench.training.metrics import import_libraries, open_sinks
from trustbench.training.sharding import Sharding
from trustbench.training.stopping import stop_signals
from trustbench.training.streams import Streams

_INIT_TOKENS = 8192  # activations that an SAE's start is fitted to


class TrainResult(NamedTuple):
    """What a run left behind."""

    out: Path
    saes: dict[str, SAE]  # by hook point, in eval mode; those that this process trained
    tokens: int
    finished: bool  # False: stopped by Ctrl-C or SIGTERM; the same call resumes

    @property
    def status(self) -> int:
        """The exit status of `trustbench train`; 130 is what shells expect of a stopped program."""
        return 0 if self.finished else 130


def train(config: TrainConfig, *, progress: bool = True) -> TrainResult:
    """Train SAEs on all chosen layers of a model together; resume if `config.out` holds this run.

    Parameters
    ----------
    config : TrainConfig
    progress : bool
        Say what it needs and what it made, and show a progress bar on standard error.

    Returns
    -------
    TrainResult
        The SAEs are also in `out/final/<hook point>/`.

    Raises
    ------
    InputError, DataError, CheckpointError, NonFiniteError
        Each says what is wrong in one sentence. A run stopped by one of them resumes from its last
        checkpoint once the cause is gone; bad data or activations lose nothing at all, as a
        checkpoint is written before they are reported.

    Examples
    --------
    >>> from trustbench.studies.demo import assets
    >>> config = tb.TrainConfig(
    ...     model=str(assets.MODEL), data=str(assets.TRAIN_TEXT), out="run", tokens=4096,
    ...     layers=[2], sae=tb.SAEConfig(d_sae=256, k=8),
    ... )
    >>> tb.train(config, progress=False).saes
    {'gpt_neox.layers.2': SAE(topk, d_in=256, d_sae=256, k=8)}
    """
    config = config.completed()
    out = Path(config.out)
    checkpoint.check_same_run(out, config)
    if (out / "final").is_dir():
        return _said(_finished(out), progress and os.environ.get("RANK", "0") == "0")
    if config.threads:
        torch.set_num_threads(config.threads)
    device = devices.resolve(config.device)
    team = Team.of_environment(device)
    progress = progress and team.rank == 0
    try:
        return _said(_Run(config, device, team, progress).go(), progress)
    finally:
        team.leave()


class _Run:
    """One run: the objects, and the loop over them."""

    def __init__(self, config: TrainConfig, device: torch.device, team: Team, progress: bool) -> None:
        self.config, self.out, self.team = config, Path(config.out), team
        self.progress = progress
        if config.spill and team.size > 1:
            raise NotImplementedError(
                "spill_host_gb, spill_disk_gb: tiers belong to one process yet; on several, a pool"
                " (buffer_tokens) as many times as large takes the same memory of each"
            )
        self.libraries = import_libraries(config) if team.rank == 0 else {}
        self.device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # Triton launches on the current device
        stored = devices.dtype(config.buffer_dtype, device)
        source = self._source()
        wirings = source.wirings
        self.sharding = Sharding(team, config.parallel, wirings, source.widths)
        self.source: Source = source
        if team.size > 1:
            checked = torch.bfloat16 if stored == torch.float8_e4m3fn else stored
            self.source = SharedSource(source, team, self.sharding.kept, checked)
        sizes = {w.name: self._sizes(w, source.widths) for w in self.sharding.trained}
        if device.type == "cuda":
            size = source.model_bytes
            free, _ = torch.cuda.mem_get_info(device)
            # What the model takes already is part of what is needed.
            kept = sum(self.sharding.kept_widths.values())
            needed = memory.predict(config, sizes, kept, size)
            needs = memory.check(needed, free + size, config, len(sizes))
            if progress:
                print(needs)
        self.buffer = ActivationBuffer(
            self.sharding.kept_widths,
            config.buffer_capacity,
            dtype=stored,
            seed=config.seed,
            device=device,
            spill=config.spill,
        )
        self.streams = Streams(device)
        self.graphs = GraphMemory() if device.type == "cuda" else None
        self.steps = {w.name: self._step_of(w, *sizes[w.name]) for w in self.sharding.trained}
        self.tokens = 0

    def _source(self) -> Source:
        config = self.config
        if config.activations and config.target_site:
            raise NotImplementedError(
                "target_site: transcoders train from a model yet, not from captured activations"
            )
        if config.activations:
            cache = ActivationCache(config.activations)
            names = cache.select(config.layers)
            most = config.model_rows * config.context_length
            return CacheSource(cache, names, most, self.device, config.seed, stride=self.team.size)
        dtype = devices.dtype(config.model_dtype, self.device)
        return ModelSource(config, self.device, dtype, target_site=config.target_site)

    def _sizes(self, wiring: Wiring, widths: dict[str, int]) -> tuple[int, int]:
        """(d_in, d_out) of a wiring; d_out is 0 for an SAE."""
        d_in = widths[wiring.reads]
        d_out = widths[wiring.writes] if self.config.target_site else 0
        for name, mine, d in (
            ("d_in", self.config.sae.d_in, d_in),
            ("d_out", self.config.sae.d_out, d_out),
        ):
            if mine not in (0, d):
                raise bad(f"sae.{name}", mine, f"0 or {d}, the width of {wiring.name}")
        return d_in, d_out

    def _step_of(self, wiring: Wiring, d_in: int, d_out: int) -> Step:
        config = self.config
        sae = SAE(config.sae.replace(d_in=d_in, d_out=d_out)).to(self.device)
        sae.wiring = wiring
        return pick(
            sae,
            AdamOptions(config.beta1, config.beta2, config.eps, config.clip_norm),
            dead_after_tokens=config.dead_after_tokens,
            name=wiring.name,
            team=self.team if self.sharding.columns else None,
            matmul_dtype=config.matmul_dtype,
            moment_dtype=devices.dtype(config.state_dtype, self.device),
            graphs=self.graphs,
        )

    def go(self) -> TrainResult:
        """Resume or start, loop, save."""
        with self.buffer:
            result = self._go()
            if result.finished:
                self.buffer.forget()
        return result

    def _go(self) -> TrainResult:
        config = self.config
        parts = (self.source, self.buffer, self.steps, self.sharding)
        with self.team.together():
            saved = checkpoint.load(self.out, *parts)
        if saved:
            self.tokens = saved["tokens"]
        else:
            self._fill()
            self._initialise()
        with ExitStack() as stack:
            if self.team.rank == 0:
                # Only now that model, text and settings have worked together is there a directory.
                with checkpoint.writing(self.out / "config.json"):
                    files.atomic_write_json(self.out / "config.json", config.to_dict())
                checkpoint.remove_leftovers(self.out)
                position = saved["metrics_position"] if saved else 0
                with checkpoint.writing(self.out / "metrics.jsonl"):
                    self.rows = TableWriter(self.out / "metrics.jsonl", position)
                    origin = about(config, device=self.device, seed=config.seed)
                    write_about(self.out / "metrics.jsonl", origin)
                stack.callback(self.rows.close)
                self.sinks = open_sinks(self.libraries, config, self.out, self.tokens)
                for sink in self.sinks:
                    stack.callback(sink.close)
            bar = stack.enter_context(
                tqdm(total=config.tokens, initial=self.tokens, unit="tok", unit_scale=True,
                     smoothing=0.1, disable=not self.progress)
            )  # fmt: skip
            stopping = stack.enter_context(stop_signals())
            finished = self._loop(bar, stopping)
        if finished:
            self._save_saes(self.out / "final")
        for step in self.steps.values():
            step.finish_pending()
        saes = {name: step.sae.eval().cpu() for name, step in self.steps.items()}
        for sae in saes.values():
            sae.matmul_dtype = None  # as they load from files
        return TrainResult(self.out, saes, self.tokens, finished)

    def _loop(self, bar: Any, stopping: threading.Event) -> bool:
        config = self.config
        self._last = (time.monotonic(), self.tokens)
        saved_at, saved_tokens = time.monotonic(), self.tokens
        if failure := self._filled():
            self._checkpoint()
            raise failure
        reusable = not any(step.keeps_batch for step in self.steps.values())
        batch: dict[str, Tensor] | None = None
        while self.tokens < config.tokens:
            n = min(config.batch_size, config.tokens - self.tokens)
            try:
                batch = self.buffer.take(n, batch if reusable and n == config.batch_size else None)
            except DataError:  # a spilled segment cannot be read back; all steps so far are whole
                self._checkpoint()
                raise
            with self.streams.beside():  # on a GPU the model's forward runs while the SAEs train
                failure = self._filled()
            self._step(batch, bar)
            self.streams.join()
            if self.device.type == "cuda" and self.count % config.log_every == 0:
                with self.team.together():
                    self.buffer.check_finite()
            if failure:
                self._checkpoint()  # all steps so far are whole, and _fill left the data where it was
                raise failure
            due = config.checkpoint_tokens and (
                self.tokens - saved_tokens >= config.checkpoint_tokens
            )
            late = config.checkpoint_minutes and (
                time.monotonic() - saved_at >= 60 * config.checkpoint_minutes
            )
            # Clocks and signals of ranks differ.
            stop, save = self.team.any(stopping.is_set(), bool(due or late))
            if stop or save:
                self._checkpoint()
                saved_at, saved_tokens = time.monotonic(), self.tokens
            if stop and self.tokens < config.tokens:
                return False
        return True

    def _filled(self) -> TrustbenchError | None:
        """`_fill`; returns what went wrong with the data, for after the step that is under way."""
        try:
            self._fill()
        except (DataError, NonFiniteError) as error:
            return error
        return None

    def _fill(self) -> None:
        """Pull until the buffer has no room for another forward (or the run needs no more).

        If what is pulled cannot be had or stored, the source stands before it again.
        """
        config = self.config
        most = config.model_rows * config.context_length
        while self.buffer.space >= most and self.buffer.tokens_in < config.tokens:
            position = self.source.state_dict()
            try:
                self.buffer.put(self.source.pull().acts)
            except (DataError, NonFiniteError):
                self.source.load_state_dict(position)
                raise

    def _initialise(self) -> None:
        """Fit every SAE's start to the first activations."""
        samples = {
            name: self.sharding.whole(name, sample).float()
            for name, sample in self.buffer.peek(_INIT_TOKENS).items()
        }
        for step in self.steps.values():
            x, y = self._read(step, samples)
            initialise(step.sae, x, self.config.b_dec_init, target=y)
            step.refresh_copies()

    def _read(self, step: Step, acts: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """(what a step's SAE reads, what it reconstructs; None: the same)."""
        wiring = step.sae.wiring
        assert wiring is not None
        return acts[wiring.reads], acts[wiring.writes] if step.sae.cfg.transcoder else None

    def _step(self, batch: dict[str, Tensor], bar: Any) -> None:
        config = self.config
        size = len(next(iter(batch.values())))
        before, self.tokens = self.tokens, self.tokens + size
        number = self.count + 1
        # The schedules are read in the middle of the step: neither the first nor the last is 0.
        middle = (before + self.tokens) / 2
        lr = config.learning_rate * schedule.lr_factor(config, middle)
        penalty_scale = schedule.sparsity_factor(config, middle)
        measure = number % config.log_every == 0 or self.tokens >= config.tokens
        with self.team.together():
            whole = {name: self.sharding.whole(name, rows) for name, rows in batch.items()}
            results = {}
            for name, step in self.steps.items():
                x, y = self._read(step, whole)
                results[name] = step.step(
                    x, lr, target=y, penalty_scale=penalty_scale, done=before / config.tokens,
                    measure=measure,
                )  # fmt: skip
        bar.update(size)
        if measure:
            now = time.monotonic()
            speed = (self.tokens - self._last[1]) / max(now - self._last[0], 1e-9)
            self._last = (now, self.tokens)
            lines: dict[str, dict[str, Any]] = {}
            for name, result in results.items():
                line = {"step": number, "tokens": self.tokens, "hook_point": name, "lr": lr}
                assert result is not None  # it was asked to measure
                lines[name] = line | result._asdict() | {"tokens_per_second": round(speed)}
            for part in self.team.objects(lines):
                lines |= part
            if self.team.rank == 0:
                self._write([lines[name] for name in self.sharding.names])
            mean = sum(line["fvu"] or 0.0 for line in lines.values()) / len(lines)
            bar.set_postfix_str(f"mean fvu {mean:.4f}")
        for count in config.snapshots:
            if before < count <= self.tokens:
                self._save_saes(self.out / "snapshots" / str(count))

    def _write(self, lines: list[dict[str, Any]]) -> None:
        """To metrics.jsonl, and wherever else metrics go."""
        for line in lines:
            with checkpoint.writing(self.out / "metrics.jsonl"):
                self.rows.append(line)
            for sink in self.sinks:
                sink.append(line)

    @property
    def count(self) -> int:
        """Training steps so far."""
        return next(iter(self.steps.values())).steps

    def _save_saes(self, target: Path) -> None:
        with checkpoint.writing(target), self.team.directory(target) as directory:
            for name, step in self.steps.items():
                step.finish_pending()
                if self.sharding.writes(name):
                    step.sae.save(directory / name)

    def _checkpoint(self) -> None:
        position = self.rows.position if self.team.rank == 0 else 0
        progress = {"tokens": self.tokens, "metrics_position": position}
        checkpoint.save(self.out, progress, self.source, self.buffer, self.steps, self.sharding)


def _finished(out: Path) -> TrainResult:
    tokens = files.read_json(out / "config.json")["tokens"]
    return TrainResult(out, load_saes(out / "final"), tokens, finished=True)


def _said(result: TrainResult, aloud: bool) -> TrainResult:
    """The result, after one line about it."""
    if aloud and result.finished:
        print(f"{len(result.saes)} SAEs, {result.tokens} tokens each: {result.out / 'final'}")
    elif aloud:
        print(
            f"stopped at {result.tokens} tokens, checkpoint written:"
            " the same command continues the run",
            file=sys.stderr,
        )
    return result
