"""The main jobs: each is a verb of the command line, and a function of trustbench with one config."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from trustbench.errors import bad, nearest


class Command(NamedTuple):
    """One main job, by dotted names: nothing is imported before it is used."""

    call: str  # "module:function"; function(config, *, progress=True), or function() without a config
    config: str | None  # "module:class", a trustbench.fields.Config
    help: str
    first: str = ""  # a field that may stand first, without its name
    # "module:{name: "module:entry"}": a name comes first, of an entry that has a config; the function
    # is called with both.
    registry: str = ""

    @property
    def name(self) -> str:
        """The function's name, in its module and in trustbench."""
        return self.call.partition(":")[2]

    def config_of(self, name: str) -> Any:
        """The class of its config, or of the config of an entry of its registry; None without one.

        Raises
        ------
        InputError
            For a name that is not in the registry.
        """
        if not self.registry:
            return load(self.config) if self.config else None
        known = load(self.registry)
        if name not in known:
            raise bad(self.name, name, f"one of {', '.join(known)}{nearest(name, known)}")
        return load(known[name]).config


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
    "study": Command(
        "trustbench.studies:study",
        None,
        "run a study: its tables, figures and page",
        registry="trustbench.studies:STUDIES",
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
