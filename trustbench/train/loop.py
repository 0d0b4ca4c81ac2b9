"""train(): text -> model forward -> buffer -> one step on every layer, until the tokens are used."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from trustbench import files
from trustbench.buffer import ActivationBuffer
from trustbench.capture import ActivationCapture, load_model, resolve_hook_points
from trustbench.data import Documents, TokenStream
from trustbench.errors import DataError, NonFiniteError, bad
from trustbench.ops import dispatch
from trustbench.sae import SAE, load_saes
from trustbench.sae.init import initialise
from trustbench.train import checkpoint, schedule
from trustbench.train.config import TrainConfig
from trustbench.train.metrics import JsonLines, import_libraries, open_sinks
from trustbench.train.step import AdamOptions, LayerTrainer

_TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16}
_INIT_TOKENS = 8192  # activations that an SAE's start is fitted to


class TrainResult(NamedTuple):
    """What a run left behind."""

    out: Path
    saes: dict[str, SAE]  # by hook point, in eval mode
    tokens: int
    finished: bool  # False: stopped by Ctrl-C or SIGTERM; the same call resumes


def train(config: TrainConfig, *, progress: bool = True) -> TrainResult:
    """Train SAEs on all chosen layers together; resume if `config.out` holds this run.

    Parameters
    ----------
    config : TrainConfig
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    TrainResult
        The SAEs are also in out/final/<hook point>/.

    Raises
    ------
    InputError, DataError, CheckpointError, NonFiniteError
        Each says what is wrong in one sentence. A run stopped by one of them resumes from its last
        checkpoint once the cause is gone; bad data or activations lose nothing at all, as a
        checkpoint is written before they are reported.
    """
    out = Path(config.out)
    checkpoint.check_same_run(out, config)
    if (out / "final").is_dir():
        return _finished(out)
    if config.threads:
        torch.set_num_threads(config.threads)
    return _Run(config).go(progress)


class _Run:
    """One run: the objects, and the loop over them."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.out = config, Path(config.out)
        self.libraries = import_libraries(config)
        documents = Documents(
            config.data,
            field=config.data_field,
            split=config.data_split,
            separator=config.document_separator,
        )
        model, tokenizer = load_model(config.model, dtype=_TORCH[config.model_dtype])
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if positions and config.context_length > positions:
            raise bad("context_length", config.context_length, f"at most the model's {positions}")
        points = resolve_hook_points(model, config.layers, config.site)
        self.capture = ActivationCapture(model, points)
        probe = self.capture.run(torch.zeros(1, 2, dtype=torch.int64))
        widths = {name: acts.shape[-1] for name, acts in probe.items()}
        self.stream = TokenStream(
            documents,
            tokenizer,
            config.context_length,
            config.model_rows,
            part="train",
            heldout_fraction=config.heldout_fraction,
            pack_documents=config.pack_documents,
            prepend_bos=config.prepend_bos,
        )
        self.buffer = ActivationBuffer(
            widths, config.buffer_capacity, dtype=_TORCH[config.buffer_dtype], seed=config.seed
        )
        self.trainers = {name: self._trainer(name, width) for name, width in widths.items()}
        self.tokens = 0

    def _trainer(self, name: str, width: int) -> LayerTrainer:
        config, sae_config = self.config, self.config.sae
        if sae_config.d_in not in (0, width):
            raise bad("sae.d_in", sae_config.d_in, f"0 or {width}, the width of {name}")
        sae = SAE(sae_config.replace(d_in=width))
        if config.matmul_dtype == "bf16" or (
            config.matmul_dtype == "auto" and dispatch.has_fast_bf16()
        ):
            sae.matmul_dtype = torch.bfloat16
        adam = AdamOptions(config.beta1, config.beta2, config.eps, config.clip_norm)
        return LayerTrainer(sae, adam, dead_after_tokens=config.dead_after_tokens, name=name)

    def go(self, progress: bool) -> TrainResult:
        """Resume or start, loop, save."""
        config = self.config
        saved = checkpoint.load(self.out, self.stream, self.buffer, self.trainers)
        if saved:
            self.tokens = saved["tokens"]
        else:
            self._fill()
            self._initialise()
        # Only now that model, text and settings have worked together does the directory exist.
        with checkpoint.writing(self.out / "config.json"):
            files.atomic_write_json(self.out / "config.json", config.to_dict())
        checkpoint.remove_leftovers(self.out)
        with ExitStack() as stack:
            position = saved["metrics_position"] if saved else 0
            with checkpoint.writing(self.out / "metrics.jsonl"):
                self.lines = JsonLines(self.out / "metrics.jsonl", position)
            stack.callback(self.lines.close)
            self.sinks = open_sinks(self.libraries, config, self.out, self.tokens)
            for sink in self.sinks:
                stack.callback(sink.close)
            bar = stack.enter_context(
                tqdm(total=config.tokens, initial=self.tokens, unit="tok", unit_scale=True,
                     smoothing=0.1, disable=not progress)
            )  # fmt: skip
            stopping = stack.enter_context(_stop_signals())
            finished = self._loop(bar, stopping)
        if finished:
            self._save_saes(self.out / "final")
        saes = {name: trainer.sae.eval() for name, trainer in self.trainers.items()}
        for sae in saes.values():
            sae.matmul_dtype = None  # as they load from files
        return TrainResult(self.out, saes, self.tokens, finished)

    def _loop(self, bar: Any, stopping: threading.Event) -> bool:
        config = self.config
        self._last = (time.monotonic(), self.tokens)
        saved_at, saved_tokens = time.monotonic(), self.tokens
        while self.tokens < config.tokens:
            try:
                self._fill()
            except (DataError, NonFiniteError):
                self._checkpoint()  # all steps so far are whole, and _fill left the data where it was
                raise
            batch = self.buffer.take(min(config.batch_size, config.tokens - self.tokens))
            self._step(batch, bar)
            due = config.checkpoint_tokens and (
                self.tokens - saved_tokens >= config.checkpoint_tokens
            )
            late = config.checkpoint_minutes and (
                time.monotonic() - saved_at >= 60 * config.checkpoint_minutes
            )
            if stopping.is_set() or due or late:
                self._checkpoint()
                saved_at, saved_tokens = time.monotonic(), self.tokens
            if stopping.is_set() and self.tokens < config.tokens:
                return False
        return True

    def _fill(self) -> None:
        """Capture until the buffer has no room for another forward (or the run needs no more).

        If a forward cannot be had or stored, the stream stands before it again.
        """
        config = self.config
        most = config.model_rows * config.context_length
        while self.buffer.space >= most and self.buffer.tokens_in < config.tokens:
            position = self.stream.state_dict()
            try:
                batch = next(self.stream)
                acts = self.capture.run(batch.input_ids)
                self.buffer.put({name: a[batch.mask].float() for name, a in acts.items()})
            except (DataError, NonFiniteError):
                self.stream.load_state_dict(position)
                raise

    def _initialise(self) -> None:
        """Fit every SAE's start to the first activations."""
        for name, sample in self.buffer.peek(_INIT_TOKENS).items():
            initialise(self.trainers[name].sae, sample.float(), self.config.b_dec_init)

    def _step(self, batch: dict[str, Tensor], bar: Any) -> None:
        config = self.config
        size = len(next(iter(batch.values())))
        before, self.tokens = self.tokens, self.tokens + size
        step = next(iter(self.trainers.values())).steps + 1
        # The schedules are read in the middle of the step: neither the first nor the last is 0.
        middle = (before + self.tokens) / 2
        lr = config.learning_rate * schedule.lr_factor(config, middle)
        sparsity = schedule.sparsity_factor(config, middle)
        measure = step % config.log_every == 0 or self.tokens >= config.tokens
        results = {
            name: trainer.step(batch[name].float(), lr, sparsity=sparsity, measure=measure)
            for name, trainer in self.trainers.items()
        }
        bar.update(size)
        if measure:
            now = time.monotonic()
            speed = (self.tokens - self._last[1]) / max(now - self._last[0], 1e-9)
            self._last = (now, self.tokens)
            for name, result in results.items():
                line = {"step": step, "tokens": self.tokens, "hook_point": name, "lr": lr}
                line |= result._asdict() | {"tokens_per_second": round(speed)}
                with checkpoint.writing(self.out / "metrics.jsonl"):
                    self.lines.write(line)
                for sink in self.sinks:
                    sink.write(line)
            mean = sum(result.fvu or 0.0 for result in results.values()) / len(results)
            bar.set_postfix_str(f"mean fvu {mean:.4f}")
        for count in config.snapshots:
            if before < count <= self.tokens:
                self._save_saes(self.out / "snapshots" / str(count))

    def _save_saes(self, target: Path) -> None:
        with checkpoint.writing(target), files.atomic_dir(target) as directory:
            for name, trainer in self.trainers.items():
                trainer.sae.save(directory / name)

    def _checkpoint(self) -> None:
        progress = {"tokens": self.tokens, "metrics_position": self.lines.position}
        checkpoint.save(self.out, progress, self.stream, self.buffer, self.trainers)


def _finished(out: Path) -> TrainResult:
    tokens = files.read_json(out / "config.json")["tokens"]
    return TrainResult(out, load_saes(out / "final"), tokens, finished=True)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets: the step under way ends, a checkpoint is written."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    previous = {
        number: signal.signal(number, lambda *_: stopping.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
