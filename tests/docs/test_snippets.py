"""README and docs: every Python snippet runs, every command is one that the command line takes."""

from __future__ import annotations

import json
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import trustbench as tb
from tests import tiny
from trustbench import cli
from trustbench.models import load_model
from trustbench.sae.families import FAMILIES
from trustbench.studies import STUDIES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|bash)(?: title=\"(\w+)\.py\")?\n(.*?)^```", re.M | re.S)
PYTHIA = 'model="EleutherAI/pythia-70m"'
# What a page names at its real size, and what stands for it here.
SMALL = {
    "/local/nvme": "spilled",
    'device="cuda"': 'device="cpu"',
    "32 * 10**9": "10**6",
    "200 * 10**9": "10**7",
    "262_144": "8192",
    "1024": "16",
    "10_000_000": "4096",
    "5_000_000": "2048",
    "100_000": "1000",
    "d_sae=8192": "d_sae=64",
    "k=32": "k=4",
}


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(the module that a snippet is a file of, or "", its text)."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(module, text) for kind, module, text in found if kind == language]


def having(language: str) -> Any:
    pages = [page for page in PAGES if blocks(page, language)]
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.stem)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"), tiny.tokenizer(), 16)


@pytest.fixture
def given(model_dir, tmp_path, monkeypatch) -> Iterator[dict[str, Any]]:
    """What snippets take for granted (tests/test_types.py has the types), in a directory for them."""
    lines = tiny.write_text(tmp_path / "text").read_text().splitlines()
    text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    (tmp_path / "corpus.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    model, tokenizer = load_model(str(model_dir))

    def activations() -> Iterator[dict[str, Tensor]]:
        for _ in range(12):
            yield {"layer 3": torch.randn(1024, 16), "layer 7": torch.randn(1024, 16)}

    ids = torch.randint(300, (2, 16))
    known = {id(registry): set(registry) for registry in (FAMILIES, STUDIES)}
    yield {
        "json": json, "np": np, "torch": torch, "tb": tb, "model": model, "tokenizer": tokenizer,
        "activations": activations, "input_ids": ids, "mask": torch.ones_like(ids),
        "x": torch.randn(8, 16), "W_enc": torch.randn(64, 16), "b_enc": torch.zeros(64),
        "W_dec": torch.randn(64, 16),
    }  # fmt: skip
    for registry in (FAMILIES, STUDIES):  # what a snippet added goes with it
        for name in registry.keys() - known[id(registry)]:
            del registry[name]


@having("python")
def test_snippets_run(page, given, model_dir):
    """One after another, as a reader would: later ones find the files and modules of earlier ones."""
    modules = []
    try:
        for module, text in blocks(page, "python"):
            for real, small in SMALL.items():
                text = text.replace(real, small)
            text = text.replace(PYTHIA, f'model="{model_dir}", context_length=32, model_rows=4')
            code = compile(text, f"{page.name}: {module or text[:40]!r}", "exec")
            if not module:
                exec(code, {"__name__": "snippet"} | given)
                continue
            modules.append(module)
            sys.modules[module] = types.ModuleType(module)
            exec(code, vars(sys.modules[module]))
    finally:
        for module in modules:
            sys.modules.pop(module, None)


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `trustbench` command of a page."""
    for _, text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            assert "trustbench" in words, line
            yield words[words.index("trustbench") + 1 :]


@having("bash")
def test_commands_are_known(page, monkeypatch):
    """The parser takes their flags, and the configs their values."""

    def made(command: Any, names: list[str], config: Any, options: dict[str, Any]) -> int:
        for name in ("config", "quiet"):
            options.pop(name, None)
        assert config is not None
        config.from_dict(options)
        return 0

    monkeypatch.setattr(cli, "_run", made)
    for arguments in commands(page):
        assert cli.main(list(arguments)) == 0, arguments


def test_links_lead_somewhere():
    """To files that are there and headings that a page has; and every page has a way in."""
    reached = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", BLOCK.sub("", page.read_text(encoding="utf-8"))):
            path, _, heading = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.is_file(), f"{page.name}: {target}"
            reached.add(linked)
            if heading and linked.stem != "api":
                heads = re.findall(r"^#+ (.*)", linked.read_text(encoding="utf-8"), re.M)
                slugs = [re.sub(r"[^\w\- ]", "", head).strip().lower() for head in heads]
                assert heading in [slug.replace(" ", "-") for slug in slugs], f"{page.name}: {target}"
    nav = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in nav and (page in reached or page.stem == "index"), page.name


def test_files_and_classes_that_pages_name_are_there():
    package = ROOT / "trustbench"
    homes = [*package.rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in homes)
    for page in PAGES:
        if page.stem == "api":
            continue  # the site's build holds it
        for name in re.findall(r"`([\w./]+)`", BLOCK.sub("", page.read_text(encoding="utf-8"))):
            rooms = (
                "benchmarks",
                "csrc",
                "kernels",
                "scripts",
                "tests",
                "trustbench",
                "sae",
                "steps",
                "ops",
            )
            if name.split("/")[0] in rooms and "/" in name and "NAME" not in name:
                assert (ROOT / name).exists() or (package / name).exists(), f"{page.name}: {name}"
            elif re.fullmatch(r"([A-Z][a-z]+){2,}|[A-Z]{2,}[a-z]\w+", name):
                assert re.search(rf"^(class {name}\b|{name} = )", sources, re.M), (
                    f"{page.name}: {name}"
                )


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
