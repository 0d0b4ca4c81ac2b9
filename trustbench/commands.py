"""The main jobs: each is a verb of the command line, and a function of trustbench with one config."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple


class Command(NamedTuple):
    """One main job, by dotted names: nothing is imported before it is used."""

    call: str  # "module:function"; function(config, *, progress=True), or function() without a config
    config: str | None  # "module:class", a trustbench.fields.Config
    help: str
    first: str = ""  # a field that may stand first, without its name

    @property
    def name(self) -> str:
        """The function's name, in its module and in trustbench."""
        return self.call.partition(":")[2]


COMMANDS = {
    "train": Command(
        "trustbench.training.loop:train",
        "trustbench.training.config:TrainConfig",
        "train SAEs on every layer of a model",
    ),
    "capture": Command(
        "trustbench.activations.capture:capture",
        "trustbench.activations.capture:CaptureConfig",
        "write activations to disk, to train on many times",
    ),
    "heads": Command(
        "trustbench.attention.heads:heads",
        "trustbench.attention.heads:HeadsConfig",
        "score what every attention head looks at",
    ),
    "eval": Command(
        "trustbench.evals.run:evaluate",
        "trustbench.evals.run:EvalConfig",
        "evaluate the SAEs of a run",
        first="run",
    ),
    "demo": Command(
        "trustbench.studies.demo:demo",
        "trustbench.studies.demo:DemoConfig",
        "the whole main job on the built-in model and text",
    ),
    "tune": Command(
        "trustbench.training.tune:tune",
        "trustbench.training.tune:TuneConfig",
        "fit the kernels to this GPU (a minute)",
    ),
    "bench": Command(
        "trustbench.benchmarking:bench",
        "trustbench.benchmarking:BenchConfig",
        "measure speed and quality, against peers and floors",
    ),
    "info": Command("trustbench.installation:info", None, "what this installation has"),
}


def load(dotted: str) -> Any:
    """What a dotted name "module:name" stands for."""
    module, _, name = dotted.partition(":")
    return getattr(import_module(module), name)
