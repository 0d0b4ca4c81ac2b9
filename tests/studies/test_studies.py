"""Every study runs, tiny and offline, and is drawn again from its tables alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.report.markup import assert_whole
from trustbench.errors import InputError
from trustbench.report import Table, style
from trustbench.studies import STUDIES, draw, load, study

TINY = {"demo": {"tokens": 8192}}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Runs a study once: its directory and what it returned."""
    known = {}

    def run(name):
        if name not in known:
            out = tmp_path_factory.mktemp(name) / "out"
            config = load(name).config(out=str(out), **TINY[name])
            known[name] = out, study(name, config, progress=False)
        return known[name]

    return run


def test_every_study_has_a_tiny_config():
    assert set(TINY) == set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_results_are_tables_with_their_origin(name, ran, capsys):
    out, tables = ran(name)
    assert capsys.readouterr().out == ""
    for table_name, table in tables.items():
        assert len(table) and Table.read(out / f"{table_name}.jsonl") == table
        about = json.loads((out / f"{table_name}.about.json").read_text())
        assert about["config"] == load(name).config(out=str(out), **TINY[name]).to_dict()
        assert about["seconds"] > 0 and about["versions"]["torch"]


@pytest.mark.parametrize("name", STUDIES)
def test_figures_and_page_come_from_the_tables_alone(name, ran, tmp_path):
    out, _ = ran(name)
    for path in out.glob("*.jsonl"):
        shutil.copy(path, tmp_path)
    assert draw(name, tmp_path) == tmp_path / "report.html"
    figures = sorted(path.name for path in (out / "figures").iterdir())
    kinds = ("svg", "light.png", "dark.png")
    assert figures == sorted(f"{figure}.{kind}" for figure in load(name).figures for kind in kinds)
    for path in ("report.html", *(f"figures/{figure}" for figure in figures)):
        assert (tmp_path / path).read_bytes() == (out / path).read_bytes(), path


@pytest.mark.parametrize("name", STUDIES)
def test_pages_are_whole_and_show_no_path_of_this_machine(name, ran):
    out, _ = ran(name)
    page = (out / "report.html").read_text()
    assert_whole(page)
    assert page.count("<svg") == len(load(name).figures)
    assert str(out) not in page and str(ROOT) not in page


def test_the_demo_does_the_whole_main_job(ran):
    out, tables = ran("demo")
    assert len(list((out / "final").iterdir())) == 6
    assert all(share > 0.3 for share in tables["eval"]["loss_recovered"])
    page = (out / "report.html").read_text()
    for text in ("mean loss recovered", "dead features", "promotes", "held-out perplexity 54.4"):
        assert text in page


def test_an_unknown_study_and_a_missing_library_are_told_before_anything_runs(monkeypatch):
    with pytest.raises(InputError, match=r"study='dmo': expected one of: demo"):
        study("dmo")
    monkeypatch.setattr(style, "require", lambda: (_ for _ in ()).throw(InputError("matplotlib")))
    with pytest.raises(InputError, match="matplotlib"):
        study("demo")
