"""The command line: fills the dataclasses of config.py from YAML files (--config) and dotted flags (--section.key)."""

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

# Restricted number type -> its description in error messages.
NUMBERS = {
    "PositiveInt": "a whole number over 0",
    "NonNegativeInt": "a whole number of at least 0",
    "PositiveFloat": "a number over 0",
    "NonNegativeFloat": "a number of at least 0",
    "ClosedUnitInterval": "a number from 0 to 1",
    "Deviation": "a number of at least 0.01",
    "ZeroOrDeviation": "0 or a number of at least 0.01",
    "HueTurn": "a number from 0 to 0.5",
    "WindowStride": "a number over 0 and at most 1",
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
    """Returns the `config_class` filled from the command line: --config FILE (any number, later files win) and dotted flags.

    Flags win over files, wherever the flags stand. If there is a field `preset`, configs/evaluate/NAME.yaml is read before all
    other files. A bool flag alone means true. positional: fields without a default are positional arguments. methods: the
    settings of each method by its name, for a field `method`. command: the subcommand, for the help.
    Raises UserError with the nearest valid key for an unknown key, and with the expected kind of value for a wrong value.
    """
    argv = _files_first([_underscored(argument) for argument in (sys.argv[1:] if argv is None else argv)])
    parser = ArgumentParser(
        prog=_program(command), description=description, exit_on_error=False, allow_abbrev=False, formatter_class=_HelpFormatter
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="YAML file with the keys below; may be given several times, later files win"
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
    except (ArgumentError, ValueError) as error:  # ValueError: an argument that is not UTF-8, or not a path
        raise UserError(_one_line(str(error), keys)) from error
    if "preset" in entries and preset != namespace.preset:
        raise UserError(f"preset: {namespace.preset} has no effect in a --config file: give --preset {namespace.preset}")
    for name, entry in entries.items():
        if is_dataclass(entry.type) and not isinstance(namespace[name], Namespace):
            raise UserError(f"configuration: {name} is a section of keys, not {namespace[name]!r}")
    if methods and namespace.method.name != method:
        raise UserError(
            f"method.name {namespace.method.name}: name the method by --method.name, or under method: in a --config file"
        )
    values = vars(parser.instantiate(namespace))
    return _plain(config_class(**{name: values[name] for name in entries}))


def parse_command(commands: dict[str, type], description: str) -> tuple[str, Any]:
    """Returns the command, the first word of the command line, and its `config_class`, which `parse` fills from the rest.

    --help alone lists the commands. COMMAND --help lists its flags. Raises UserError for a missing or unknown command.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        lines = (f"  {command:<12}{(entry.__doc__ or '').splitlines()[0]}" for command, entry in commands.items())
        print("\n".join([description, "commands (COMMAND --help lists its flags):", *lines]))
        sys.exit(0)
    if name not in commands:
        near = difflib.get_close_matches(name, commands, 1)
        raise UserError(f"command {name!r}: " + (f"did you mean {near[0]}?" if near else f"choose {', '.join(commands)}"))
    return name, parse(commands[name], commands[name].__doc__ or "", sys.argv[2:], positional=True, command=name)


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's help, with the line breaks of the description."""


def _program(command: str) -> str:
    """Returns the command line of the program: python train.py, or python -m tools.scribbles COMMAND."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return " ".join(filter(None, ["python", f"-m {module.name}" if module else Path(sys.argv[0]).name, command]))


def _underscored(argument: str) -> str:
    """Returns a flag --skip-nonfinite=1 as --skip_nonfinite=1, and any other argument unchanged."""
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value if flag.startswith("--") else argument


def _files_first(argv: list[str]) -> list[str]:
    """Returns the arguments with every --config FILE first. The order is kept among files and among other arguments."""
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
    """Returns `value` with restricted numbers (PositiveInt ...) as plain int and float, for YAML and checkpoints.
    Raises UserError with the key of a number that is not finite."""
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
    """Yields each flag and its value, from --flag=value or --flag value. A flag without a value gets the next argument."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=False):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            yield flag, value if equals else following


def _preset_name(argv: list[str], default: str) -> str:
    """Returns the value of --preset, or the default."""
    return ([value for flag, value in _flags(argv) if flag == "--preset"] or [default])[-1]


def _method_name(argv: list[str], methods: dict[str, type[MethodConfig]]) -> str:
    """Returns the method that the files and flags name, or else the first of `methods`. Raises UserError for an unknown
    name, or if files and flags name different methods."""
    named = {}
    for flag, value in _flags(argv):
        if flag == "--method.name":
            named[flag] = value
        elif flag == "--config":
            try:
                named[f"--config {value}"] = yaml.safe_load(Path(value).read_text(encoding="utf-8"))["method"]["name"]
            except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError):
                continue  # the file names no method; the parser reports a bad file
    for where, name in named.items():
        if not isinstance(name, str) or name not in methods:
            raise UserError(f"method.name {name}: choose {', '.join(methods)}")
        first = next(iter(named))
        if name != named[first]:
            raise UserError(f"{first} is for method {named[first]}, but {where} for {name}: give the files of one method")
    return next(iter(named.values()), next(iter(methods)))


def read_preset(name: str) -> dict:
    """Returns the settings in the file of a preset."""
    return yaml.safe_load(_preset_file(name).read_text(encoding="utf-8"))


def _preset_file(name: str) -> Path:
    return EVALUATION_PRESETS / f"{name}.yaml"


def _preset_arguments(name: str) -> list[str]:
    """Returns the --config of a preset. Raises UserError for an unknown preset."""
    file = _preset_file(name)
    if not file.is_file():
        raise UserError(f"--preset {name}: choose {', '.join(sorted(p.stem for p in EVALUATION_PRESETS.glob('*.yaml')))}")
    return ["--config", str(file)]


def _one_line(message: str, keys: list[str]) -> str:
    """Returns jsonargparse's message as one line. An unknown key gets the nearest of `keys`, a wrong choice the nearest
    choice."""
    message = " ".join(message.split())
    missing = re.search(r"Unable to load config ['\"](.*?)['\"]", message)
    if missing and not Path(missing[1]).exists():
        return f"{missing[1]}: no such file"
    names = re.search(r"key \"([\w.]+)\": Expected a <class 'tuple'>.*?Got value: ([\w./]+)", message)
    if names:
        return f"{names[1]}: a list is expected: --{names[1]} '[{names[2]}]'"
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
        return f"{stray[1]}: no flag takes this value; a yes-or-no flag is --flag alone, --flag=true or --flag=false"
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
