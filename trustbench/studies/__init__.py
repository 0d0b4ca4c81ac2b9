"""Studies: a question answered by tables, figures drawn from the tables alone, and a page.

A study is a folder with a STUDY and one line in STUDIES. It may use all of trustbench but no other
study; what one finds reaches another as files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trustbench import commands, devices, files
from trustbench.errors import bad
from trustbench.report import Table, about, style
from trustbench.report import page as pages

# A name, and where its Study is; nothing is imported until it is asked for.
STUDIES = {"demo": "trustbench.studies.demo:STUDY"}


class Plot(NamedTuple):
    """A figure of a study."""

    draw: style.Draw  # takes the tables below, one argument each
    tables: tuple[str, ...]
    alt: str  # what it shows, in words


class Study(NamedTuple):
    """What a study is."""

    name: str
    about: str  # one sentence
    config: Callable[..., Any]  # a config's class; it has a field `out`, and defaults
    run: Callable[..., Mapping[str, Table]]  # run(config, progress=True): name -> table
    figures: Mapping[str, Plot]
    # page(tables, figures): the HTML, from the tables and the drawn figures by name
    page: Callable[[Mapping[str, Table], Mapping[str, pages.Figure]], str]


def load(name: str) -> Study:
    """The study of a name; InputError for a name that is not in STUDIES."""
    if name not in STUDIES:
        raise bad("study", name, f"one of: {', '.join(STUDIES)}")
    return commands.load(STUDIES[name])


def study(name: str, config: Any = None, *, progress: bool = True) -> dict[str, Table]:
    """Run a study: write its tables, figures and page.

    In `config.out`: `<table>.jsonl` with `<table>.about.json`, `figures/<figure>.svg` and `.png` for
    light and dark pages, and `report.html`.

    Parameters
    ----------
    name : str
        A name in STUDIES.
    config
        The study's config; None: its defaults.
    progress : bool
        Say what is being done, and where the page is.

    Returns
    -------
    {name: Table}

    Raises
    ------
    InputError
        For an unknown name, or without matplotlib (before anything is computed).
    """
    found = load(name)
    style.require()
    config = found.config() if config is None else config
    started = time.monotonic()
    tables = dict(found.run(config, progress=progress))
    origin = about(
        config,
        device=devices.resolve(getattr(config, "device", "auto")),
        seed=getattr(config, "seed", None),
        seconds=time.monotonic() - started,
    )
    for table_name, table in tables.items():
        table.write(Path(config.out) / f"{table_name}.jsonl", origin)
    path = draw(name, config.out)
    if progress:
        print(f"{time.monotonic() - started:.0f} s on {torch.get_num_threads()} threads; {path}")
    return tables


def draw(name: str, out: str | Path) -> Path:
    """Draw a study's figures and page again from the tables in `out`; returns the page's path."""
    found, out = load(name), Path(out)
    tables = {path.stem: Table.read(path) for path in sorted(out.glob("*.jsonl"))}
    figures = {}
    for figure, plot in found.figures.items():
        given = [tables[table] for table in plot.tables]
        style.save(out / "figures" / figure, plot.draw, *given)
        figures[figure] = pages.Figure(style.svg(plot.draw, *given), plot.alt)
    path = out / "report.html"
    files.atomic_write_text(path, found.page(tables, figures))
    return path
