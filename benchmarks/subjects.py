"""What the suite measures: one entry a subject, in the order of the report.

A subject is measured by benchmarks/test_<name>.py (or the files of benchmarks/<name>/), which write
rows under its name into pytest-benchmark's extra_info; `module` turns them into `table(rows)`,
Markdown, and `figure(rows, path)`.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent


class Subject(NamedTuple):
    """One section of the report."""

    name: str
    title: str
    about: str
    alt: str  # of its figure
    module: str  # of benchmarks

    def path(self) -> Path:
        """What pytest runs."""
        file = HERE / f"test_{self.name}.py"
        return file if file.exists() else HERE / self.name

    def load(self) -> Any:
        """Its `table` and `figure`."""
        return importlib.import_module(f"benchmarks.{self.module}")


_ALL = (
    Subject(
        "step", "One training step",
        "One full Adam step with unit-norm decoder; every peer in its own trainer's order of"
        " operations, in fp32 and under bf16 autocast. Medians of interleaved rounds.",
        "Milliseconds of one training step by trustbench and every peer, with the floor", "step",
    ),
    Subject(
        "quality", "Quality beside speed",
        "Training on one layer of the demo model: the same activations in the same order, the same"
        " k and width, each trainer's own AuxK, the best of a small grid of learning rates.",
        "fvu and dead features of trustbench and every peer, against tokens and against seconds",
        "quality",
    ),
    Subject(
        "ops", "Each op",
        "Every op against what one would write in PyTorch, fp32. Above 100 % of the floor a kernel"
        " is faster than torch's own matmul, or works from cache.",
        "Milliseconds of every op and of PyTorch's functions in its place, with the floor", "timed",
    ),
    Subject(
        "buffer", "The shuffling buffer",
        "Putting tokens of all layers in, and taking a batch out. memcpy copies the same bytes"
        " twice, in order. With a tier below the pool, every token goes down and comes back once.",
        "Milliseconds a batch of trustbench's buffer, its peers' and memcpy", "buffer",
    ),
    Subject(
        "attention", "Attention with its statistics",
        "One row, causal, fp32: log-sum-exp, entropy, look-back, largest probability, and the mass"
        " on first, own, previous and last positions. SDPA and flex_attention give the output alone.",
        "Milliseconds of attention with statistics, and of torch's attention without", "timed",
    ),
    Subject(
        "capture", "Attention of a whole model",
        "A forward that also gives every head's entropy and largest probability (trustbench gives"
        " all its statistics); the peers keep the patterns and reduce them.",
        "Milliseconds of a model's forward with the attention of every head", "timed",
    ),
    Subject(
        "scaling", "Scaling",
        "What a training step costs against each of its sizes, where memory ends, and what several"
        " processes on one machine reach.",
        "Cost of a training step against tokens, width, features, k and layers", "scaling",
    ),
)  # fmt: skip


def subjects() -> tuple[Subject, ...]:
    """Those whose module is in this checkout."""
    return tuple(s for s in _ALL if importlib.util.find_spec(f"benchmarks.{s.module}"))
