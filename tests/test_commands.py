"""The main jobs: one table, of the verbs of the command line and the functions of trustbench."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from pathlib import Path

import docstring_parser
import pytest

import trustbench as tb
from trustbench.cli import main
from trustbench.commands import COMMANDS, load
from trustbench.fields import Config
from trustbench.studies import STUDIES

VERBS = pytest.mark.parametrize("verb", COMMANDS)


def test_verbs_are_functions_of_trustbench():
    for verb, command in COMMANDS.items():
        # `eval` is Python's own.
        assert command.name == {"eval": "evaluate"}.get(verb, verb)
        function = getattr(tb, command.name)
        assert inspect.isfunction(function) and function is load(command.call)
        assert function.__name__ == command.name and function.__doc__


@VERBS
def test_a_function_takes_one_config(verb):
    command = COMMANDS[verb]
    parameters = list(inspect.signature(load(command.call)).parameters.values())
    options = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert options <= {"progress"}
    given = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    if command.registry:
        assert [p.name for p in given] == ["name", "config"]
        configs = [command.config_of(name) for name in load(command.registry)]
        assert configs and all(issubclass(config, Config) for config in configs)
        return
    if command.config is None:
        assert not given
        return
    config = load(command.config)
    hints = typing.get_type_hints(load(command.call))
    assert [hints[p.name] for p in given] == [config] and issubclass(config, Config)
    assert config is getattr(tb, config.__name__)


def test_the_command_line_has_these_verbs(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert f"{{{','.join(COMMANDS)}}}" in text
    assert all(command.help in " ".join(text.split()) for command in COMMANDS.values())


@VERBS
def test_help_explains_every_field(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    config = COMMANDS[verb].config
    for name, words in explained(load(config)) if config else ():
        # Help is broken into lines at hyphens too.
        assert f"--{name} " in text and words.replace(" ", "") in text.replace(" ", ""), name


def explained(config: type[Config], prefix: str = "") -> list[tuple[str, str]]:
    """(flag, its explanation) of every field."""
    words: dict[str, str] = {}
    for cls in config.__mro__[::-1]:
        for part in docstring_parser.parse(cls.__doc__ or "").params:
            words[part.arg_name] = " ".join((part.description or "").split())
    found = []
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        assert words.get(field.name), f"{config.__name__}.{field.name} is not explained"
        if isinstance(hints[field.name], type) and issubclass(hints[field.name], Config):
            found += explained(hints[field.name], f"{prefix}{field.name}.")
        else:
            found.append((prefix + field.name, words[field.name]))
    return found


def test_what_type_checkers_see_is_what_there_is():
    tree = ast.parse(Path(tb.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))  # if TYPE_CHECKING
    seen = {alias.asname or alias.name for line in block.body for alias in line.names}
    assert seen | {"__version__"} == set(tb.__all__) == set(dir(tb))
    for line in block.body:
        for alias in line.names:
            if line.module != "trustbench":
                found = load(f"{line.module}:{alias.name}")
                assert getattr(tb, alias.asname or alias.name) is found


def test_a_verb_with_a_registry_takes_a_name_first(capsys):
    for name in STUDIES:
        with pytest.raises(SystemExit):
            main(["study", name, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        for field, words in explained(COMMANDS["study"].config_of(name)):
            assert f"--{field} " in text and words.replace(" ", "") in text.replace(" ", "")
    assert main(["study", "demo", "--tokens", "0"]) == 2
    assert "study: tokens=0: expected an integer >= 1" in capsys.readouterr().err
    assert main(["study"]) == 2
    assert "study: study='': expected one of demo" in capsys.readouterr().err
    assert main(["study", "dmeo"]) == 2
    assert "; did you mean 'demo'?" in capsys.readouterr().err


def test_flags_as_people_write_them(tmp_path, capsys):
    assert main(["eval", str(tmp_path), "--spliced-tokens", "0"]) == 2
    assert "spliced_tokens=0: expected an integer >= 1" in capsys.readouterr().err
    assert main(["bench", "--full=true", "--quick", "true"]) == 2
    assert "one of --quick, --full and --gpu" in capsys.readouterr().err
    assert main(["eval"]) == 2
    assert "eval.run" in capsys.readouterr().err


def test_quiet_is_quiet(tiny_model_dir, tiny_text, tmp_path, capfd):
    text = {"model": str(tiny_model_dir), "data": str(tiny_text), "context_length": 32}
    text |= {"heldout_fraction": 0.5}
    flags = [f"--{name}={value}" for name, value in text.items()]
    acts, run, heads = (str(tmp_path / name) for name in ("acts", "run", "heads"))
    sae = ["--sae.d_sae=32", "--sae.k=2", "--batch_size=64"]
    assert main(["capture", *flags, f"--out={acts}", "--tokens=500", "--quiet"]) == 0
    assert main(["train", *flags, f"--out={run}", "--tokens=500", *sae, "--quiet"]) == 0
    assert main(["heads", *flags, f"--out={heads}", "--tokens=100", "--quiet"]) == 0
    assert main(["eval", run, "--tokens=100", "--spliced_tokens=100", "--quiet"]) == 0
    assert main(["info", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert main(["train", *flags, f"--out={run}", "--tokens=500", *sae]) == 0
    assert "3 SAEs, 500 tokens each" in capfd.readouterr().out
