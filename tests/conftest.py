"""Fixtures for all tests: one thread, poisoned empty tensors, the shared data, a tiny model."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from tests import tiny

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

SHARED = Path(__file__).parents[2] / "shared" / "data"


# These take minutes each. They begin first, so that no process is left alone with one of them.
LONGEST = ("test_gpu_benchmark.py", "test_studies.py", "test_resources.py")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_auto_num_workers() -> int:
    """`pytest -n auto`: a process a core; each takes half a gigabyte, and some tests much more."""
    return min(8, len(os.sched_getaffinity(0)))


def pytest_configure(config: pytest.Config) -> None:
    """On several processes a file's tests stay together: they share what its fixtures compile."""
    if getattr(config.option, "numprocesses", None):
        config.option.dist, config.option.loadscopereorder = "loadfile", False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def _fixed_threads_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_empty(monkeypatch):
    """torch.empty of floats is full of NaN: whatever a kernel forgets to write shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor.fill_(-1)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def shared_text() -> Path:
    """Real text that tests may read but the package does not ship."""
    path = SHARED / "wikitext2-valid.txt"
    if not path.is_file():
        pytest.skip(f"{path} is absent: this test reads real text from there")
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer with fewer than 300 tokens."""
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory, tiny_tokenizer) -> Path:
    """A random GPT-NeoX with three layers, on disk with its tokenizer."""
    return tiny.write_model(tmp_path_factory.mktemp("model"), tiny_tokenizer, 16)


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory) -> Path:
    """60 kB of made-up text in lines, the same every time."""
    return tiny.write_text(tmp_path_factory.mktemp("text") / "text.txt")
