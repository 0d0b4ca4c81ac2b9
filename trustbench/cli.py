"""The command line: the verbs of `trustbench.commands`, their configs' fields as flags, no logic."""

from __future__ import annotations

import inspect
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from trustbench import __version__
from trustbench.commands import COMMANDS, Command, load
from trustbench.errors import TrustbenchError, nearest
from trustbench.fields import Config, resolved

_INTERRUPTED = 130  # what a shell expects of a program stopped by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors a user can mend are one line, status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verb = given[0] if given else ""
    command = COMMANDS.get(verb)
    config = None
    try:
        names = _names(command, given)
        if command and (names or not command.registry):
            config = command.config_of(*names or [""])
        chosen = _parser(verb, config).parse_args(_spelled(given, command, config))
        assert command is not None  # or the parser had refused the verb
        return _run(command, names, config, chosen[verb].as_dict())
    except ArgumentError as error:
        print(f"trustbench: {_explain(str(error), config)}", file=sys.stderr)
        return 2
    except (TrustbenchError, NotImplementedError) as error:
        if os.environ.get("TRUSTBENCH_DEBUG") == "1":
            raise
        print(f"trustbench {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"trustbench {verb}: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _names(command: Command | None, given: list[str]) -> list[str]:
    """Take the name of an entry of a verb's registry out of the arguments."""
    if command and command.registry and given[1:] and not given[1].startswith("-"):
        return [given.pop(1)]
    return []


def _run(
    command: Command, names: list[str], config: type[Config] | None, options: dict[str, Any]
) -> int:
    """Call a verb's function; a result with a status says how it ended."""
    if command.registry and not names:
        command.config_of("")  # says which there are
    options.pop("config", None)
    progress = {"progress": not options.pop("quiet")} if "quiet" in options else {}
    configs = [config.from_dict(options)] if config else []
    result = load(command.call)(*names, *configs, **progress)
    return getattr(result, "status", 0)


def _parser(verb: str, config: type[Config] | None) -> ArgumentParser:
    """All verbs; the flags of one, as importing the configs of all would take seconds."""
    parser = ArgumentParser(
        prog="trustbench",
        exit_on_error=False,
        description="Fast sparse autoencoders on every layer of a language model.",
        epilog="TRUSTBENCH_DEBUG=1 shows the whole traceback of an error.",
        version=f"trustbench {__version__}",
    )
    verbs = parser.add_subcommands(required=True, dest="verb")
    for name, command in COMMANDS.items():
        if name != verb:
            verbs.add_subcommand(name, ArgumentParser(), help=command.help)
            continue
        function = load(command.call)
        one = ArgumentParser(exit_on_error=False, description=_description(function))
        if command.registry:
            one.usage = f"trustbench {name} NAME [options]"
            one.epilog = f"NAME is one of: {', '.join(load(command.registry))}."
        if command.first:
            one.epilog = f"The word --{command.first} may be left out where its value comes first."
        if config is not None:
            one.add_argument(
                "--config", action="config", help="a YAML or JSON file of the fields below"
            )
            one.add_class_arguments(config)
        if "progress" in inspect.signature(function).parameters:
            one.add_argument("--quiet", action="store_true", help="print nothing but errors")
        verbs.add_subcommand(name, one, help=command.help)
    return parser


def _description(function: Any) -> str:
    """A docstring up to its first heading."""
    return re.split(r"\n\w+\n-+\n", inspect.getdoc(function) or "")[0].strip()


def _spelled(arguments: list[str], command: Command | None, config: type[Config] | None) -> list[str]:
    """Arguments as the parser knows them.

    Hyphens in flags are underscores, a bare flag of a boolean field is true, and a verb's first
    field needs no flag.
    """
    switches = {f"--{name}" for name, kind in _fields(config) if kind is bool}
    found = []
    for i, argument in enumerate(arguments):
        if i == 1 and command and command.first and not argument.startswith("-"):
            argument = f"--{command.first}={argument}"
        elif argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            argument = "--" + flag[2:].replace("-", "_") + equals + value
            following = arguments[i + 1 : i + 2]
            if argument in switches and following not in (["true"], ["false"]):
                argument += "=true"
        found.append(argument)
    return found


def _fields(config: type[Config] | None) -> Iterator[tuple[str, Any]]:
    """Names and annotations of a config's fields, those of the configs inside as outer.inner."""
    for name, kind in resolved(config).items() if config else ():
        if isinstance(kind, type) and issubclass(kind, Config):
            yield from ((f"{name}.{inner}", one) for inner, one in _fields(kind))
        else:
            yield name, kind


def _explain(message: str, config: type[Config] | None) -> str:
    """The parser's message on one line, with the name that an unknown one may have meant."""
    text = " ".join(message.split())
    unknown = re.search(r"unrecognized arguments: --([\w.]+)|option '([\w.]+)'", text)
    if unknown:
        return text + nearest(unknown[1] or unknown[2], [name for name, _ in _fields(config)])
    return text


if __name__ == "__main__":
    sys.exit(main())
