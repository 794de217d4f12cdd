"""The command line: sets what config.py has, from YAML files (--config) and dotted flags (--section.key)."""

import difflib
import math
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from config import MethodConfig
from errors import UserError

# The restricted numbers, as an error calls them.
NUMBERS = {
    "PositiveInt": "a whole number over 0",
    "NonNegativeInt": "a whole number, 0 or more,",
    "PositiveFloat": "a number over 0",
    "NonNegativeFloat": "a number, 0 or more,",
    "ClosedUnitInterval": "a number from 0 to 1",
    "Deviation": "a number, 0.01 or more,",
    "ZeroOrDeviation": "0, or a number of 0.01 or more,",
    "HueTurn": "a number from 0 to 0.5",
    "WindowStride": "a number over 0, at most 1,",
}

T = TypeVar("T")

EVALUATION_PRESETS = Path(__file__).parent / "configs" / "evaluate"

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(
    config_class: type[T],
    description: str,
    argv: list[str] | None = None,
    positional: bool = False,
    methods: dict[str, type[MethodConfig]] | None = None,
    command: str = "",
) -> T:
    """The `config_class` that the command line sets: --config FILE (any number, later ones win) and dotted flags. A flag wins
    over the files wherever it stands.

    A field called `preset` goes before everything else as configs/evaluate/NAME.yaml. A flag of a bool may stand alone,
    for true. positional: fields without a default are arguments without a flag. methods: what a field called `method` may
    be, by its `name`. command: the word before the flags, for the help.
    Raises UserError naming the nearest right key for an unknown one, and what was expected for a wrong value.
    """
    argv = _files_first([_underscored(argument) for argument in (sys.argv[1:] if argv is None else argv)])
    parser = ArgumentParser(
        prog=_program(command), description=description, exit_on_error=False, allow_abbrev=False, formatter_class=_HelpFormatter
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="YAML file of keys as below; may be given again, later ones win"
    )
    parser.add_class_arguments(config_class, as_positional=positional, skip={"method"} if methods else None)
    if methods:
        method = _method_name(argv, methods)
        parser.add_class_arguments(methods[method], "method")
    defaults = parser.get_defaults()
    keys = [key for key, _ in defaults.items() if key != "config"]
    entries = {entry.name: entry for entry in fields(cast(Any, config_class))}
    if "preset" in entries:
        preset = _preset_name(argv, str(entries["preset"].default))
        argv = _preset_arguments(preset) + argv
    switches = {f"--{key}" for key in keys if isinstance(defaults[key], bool)}
    argv = [
        f"{argument}=true" if argument in switches and following.lower() not in ("true", "false") else argument
        for argument, following in zip(argv, [*argv[1:], ""], strict=False)
    ]
    try:
        namespace = parser.parse_args(argv)
    except (ArgumentError, ValueError) as error:  # ValueError: what is no text in UTF-8, or no path
        raise UserError(_one_line(str(error), keys)) from error
    if "preset" in entries and preset != namespace.preset:
        raise UserError(f"preset: {namespace.preset} in a --config has no effect: give --preset {namespace.preset} as a flag")
    for name, entry in entries.items():
        if is_dataclass(entry.type) and not isinstance(namespace[name], Namespace):
            raise UserError(f"configuration: {name} is a section of keys, not {namespace[name]!r}")
    if methods and namespace.method.name != method:
        raise UserError(
            f"method.name {namespace.method.name}: name the method by --method.name, or in a --config under method:"
        )
    values = vars(parser.instantiate(namespace))
    return _plain(config_class(**{name: values[name] for name in entries}))


def parse_command(commands: dict[str, type], description: str) -> tuple[str, Any]:
    """The first word of the command line, one of `commands`, and its `config_class` as `parse` sets it from the rest.

    --help alone lists the commands; COMMAND --help its options. Raises UserError for no or an unknown command.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        lines = (f"  {command:<12}{(entry.__doc__ or '').splitlines()[0]}" for command, entry in commands.items())
        print("\n".join([description, "commands (each with --help):", *lines]))
        sys.exit(0)
    if name not in commands:
        near = difflib.get_close_matches(name, commands, 1)
        raise UserError(f"command {name!r}: " + (f"did you mean {near[0]}?" if near else f"choose {', '.join(commands)}"))
    return name, parse(commands[name], commands[name].__doc__ or "", sys.argv[2:], positional=True, command=name)


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's help with the description's own lines kept."""


def _program(command: str) -> str:
    """How the running program is called: python train.py, or python -m tools.scribbles COMMAND."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return " ".join(filter(None, ["python", f"-m {module.name}" if module else Path(sys.argv[0]).name, command]))


def _underscored(argument: str) -> str:
    """--skip-nonfinite=1 as --skip_nonfinite=1; anything but a flag as it is."""
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value if flag.startswith("--") else argument


def _files_first(argv: list[str]) -> list[str]:
    """The arguments with every --config FILE before all others, in their order."""
    files: list[str] = []
    others: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            files += [argument, *([following] if (following := next(arguments, None)) is not None else [])]
        else:
            (files if argument.startswith("--config=") else others).append(argument)
    return files + others


def _plain(value: Any, key: str = "") -> Any:
    """`value` with jsonargparse's restricted numbers (PositiveInt ...) as plain int and float, for YAML and checkpoints.
    Raises UserError, naming its key, for a number that is not finite."""
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{name: _plain(part, f"{key}.{name}") for name, part in vars(value).items()})
    if isinstance(value, dict):
        return {name: _plain(part, f"{key}.{name}") for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(part, key) for part in value)
    plain = next((kind for kind in (bool, int, float) if isinstance(value, kind)), None)
    if plain is float and not math.isfinite(value):
        raise UserError(f"{key[1:]} is {value}: a finite number is expected")
    return value if plain is None else plain(value)


def _flags(argv: list[str]) -> Iterator[tuple[str, str]]:
    """Each flag with its value, as in --flag=value or --flag value; a flag that stands alone, with what follows it."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=False):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            yield flag, value if equals else following


def _preset_name(argv: list[str], default: str) -> str:
    """What --preset says, or the default."""
    return ([value for flag, value in _flags(argv) if flag == "--preset"] or [default])[-1]


def _method_name(argv: list[str], methods: dict[str, type[MethodConfig]]) -> str:
    """The method that the files and flags name, or the first of `methods`. Raises UserError for an unknown name, or for
    different methods."""
    named = {}
    for flag, value in _flags(argv):
        if flag == "--method.name":
            named[flag] = value
        elif flag == "--config":
            try:
                named[f"--config {value}"] = yaml.safe_load(Path(value).read_text(encoding="utf-8"))["method"]["name"]
            except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError):
                continue  # the file does not name one; what else is wrong with it, the parser says
    for where, name in named.items():
        if not isinstance(name, str) or name not in methods:
            raise UserError(f"method.name {name}: choose {', '.join(methods)}")
        first = next(iter(named))
        if name != named[first]:
            raise UserError(f"{first} is for method {named[first]}, but {where} for {name}: give the files of one method")
    return next(iter(named.values()), next(iter(methods)))


def _preset_arguments(name: str) -> list[str]:
    """The --config that a preset stands for."""
    file = EVALUATION_PRESETS / f"{name}.yaml"
    if not file.is_file():
        raise UserError(f"--preset {name}: choose {', '.join(sorted(p.stem for p in EVALUATION_PRESETS.glob('*.yaml')))}")
    return ["--config", str(file)]


def _one_line(message: str, keys: list[str]) -> str:
    """jsonargparse's message in one line, with the nearest of `keys` where it complains of an unknown one, and the nearest of
    the choices where it complains of a value."""
    message = " ".join(message.split())
    number = re.search(r"key \"([\w.]+)\": .*?(" + "|".join(NUMBERS) + ")", message)
    if number:
        given = (
            re.search(r"Given value: (.*)", message)
            or re.search(r"(?:literal|convert) .*: '(.*)'", message)
            or re.search(r"(\S+) does not conform", message)
        )
        return f"{number[1]}: {NUMBERS[number[2]]} is expected" + (f", not {given[1]}" if given else "")
    stray = re.fullmatch(r"[Uu]nrecognized arguments: (?!.*--)(\S+).*", message)
    if stray:
        return f"{stray[1]}: belongs to no flag (one for yes or no stands alone, or is --flag=true or --flag=false)"
    choice = re.search(r"key \"([\w.]+)\": Expected a typing\.Literal\[(.*?)\]\. Got value: (.*)", message)
    if choice:
        key, value, choices = choice[1], choice[3], re.findall(r"[\w.]+", choice[2])
        near = difflib.get_close_matches(value, choices, 1)
        return f"{key} {value}: " + (f"did you mean {near[0]}? " if near else "") + f"choose {', '.join(choices)}"
    unknown = re.search(r"[Uu]nrecognized arguments: .*?--([\w.]+)", message)
    nested = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message) or re.search(
        r"(?:does not accept option|[Kk]ey|[Oo]ption) ['\"]()([\w.]+)['\"]", message
    )
    key = unknown[1] if unknown else ".".join(filter(None, nested.groups())) if nested else None
    if key is None or key in (*keys, "config"):
        return message
    leaves = {k.rsplit(".", 1)[-1]: k for k in keys}
    near = difflib.get_close_matches(key, keys, 1) or [
        leaves[leaf] for leaf in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, 1)
    ]
    return f"unknown key {key}" + (f": did you mean {near[0]}?" if near else ": --help lists the keys")
