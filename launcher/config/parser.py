"""Turns a dataclass into a command line: a YAML file, dotted overrides, strict keys, help from the field docstrings."""

import difflib
import json
import re
import warnings
from collections import deque
from dataclasses import fields
from typing import TypeVar

from ingot.launcher.runtime.exit_codes import BadInput

T = TypeVar("T")

# Flags that launchers add to the command line of each worker.
_LAUNCHER_FLAGS = re.compile(r"--(local_rank|local-rank|deepspeed|deepspeed_config)(=.*)?$")


def parse(cls: type[T], argv: list[str], description: str, config: str | None = None) -> T:
    """Builds `cls` from `argv`.

    Args:
        cls: a dataclass; nested dataclasses become dotted options, field docstrings become the help.
        argv: `--config FILE`, then `--section.key value` overrides; what comes later wins.
        description: the first lines of `--help`.
        config: a YAML file to read before `argv`.

    Raises:
        BadInput: a file that is not there, an unknown key (the nearest one is named), a value of the wrong type.
        SystemExit: for --help and --print_config.
    """
    parser = _parser(cls, description)
    argv = without_launcher_flags(argv)
    if config is not None:
        argv = ["--config", config, *argv]
    try:
        values = parser.instantiate(parser.parse_args(argv))
        return cls(**{field.name: values[field.name] for field in fields(cls)})
    except Exception as error:
        import jsonargparse

        if not isinstance(error, jsonargparse.ArgumentError | ValueError | TypeError | OSError):
            raise
        raise BadInput(_explain(str(error), _option_names(parser))) from error


def without_launcher_flags(argv: list[str]) -> list[str]:
    """`deepspeed` puts --local_rank=N in front of a worker's own arguments; older launchers write it in two words."""
    kept, skip = [], False
    for argument in argv:
        match = _LAUNCHER_FLAGS.match(argument)
        if match:
            skip = match.group(2) is None and match.group(1).startswith("local")
        elif skip and argument.isdigit():
            skip = False
        else:
            kept.append(argument)
            skip = False
    return kept


def spread_lists(argv: list[str], names: tuple[str, ...]) -> list[str]:
    """`--input a b` as `--input=["a", "b"]` and `--overwrite` as `--overwrite=true`: the parser wants one word each."""
    result: list[str] = []
    rest = deque(argv)
    while rest:
        word = rest.popleft()
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and equals and name in names and not value.startswith("["):
            result.append(f"--{name}={json.dumps([value])}")
            continue
        values: list[str] = []
        if word.startswith("--") and not equals and name in (*names, "overwrite"):
            while rest and not rest[0].startswith("--"):
                values.append(rest.popleft())
            if name == "overwrite":
                word += "=" + (values[0] if values else "true")
            else:
                word += "=" + (values[0] if values and values[0].startswith("[") else json.dumps(values))
        result.append(word)
    return result


def to_yaml(instance: object) -> str:
    """A configuration as a complete YAML text that `parse` reads back."""
    import yaml

    return yaml.safe_dump(_plain(instance.to_dict()), sort_keys=False, allow_unicode=True)


def _parser(cls: type, description: str):
    import jsonargparse

    warnings.filterwarnings("ignore", category=DeprecationWarning, module="jsonargparse")
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(exit_on_error=False, description=description)
    parser.add_argument("--config", action="config", help="YAML file with the same keys; may be given more than once.")
    parser.add_class_arguments(cls, None)
    return parser


def _option_names(parser) -> list[str]:
    return [action.dest for action in parser._actions if getattr(action, "dest", None)]


def _explain(message: str, options: list[str]) -> str:
    """jsonargparse's message, shortened to what a user can act on, with the nearest option where a name is unknown."""
    message = re.sub(r"\s+", " ", message).replace("Parser key ", "").strip()
    message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
    unknown = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    if unknown:
        return f"unknown option {unknown[1]}.{unknown[2]}{_nearest(f'{unknown[1]}.{unknown[2]}', options)}"
    unknown = re.search(r"[Uu]nrecognized arguments: --([\w.-]+)", message)
    if unknown:
        return f"unknown option {unknown[1]}{_nearest(unknown[1], options)}"
    unknown = re.search(r"(?:Option|Key|option) '([\w.]+)' is not (?:accepted|expected)", message)
    if unknown:
        return f"{message}{_nearest(unknown[1], options)}"
    return message


def _nearest(name: str, options: list[str]) -> str:
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.0)
    leaves = {option.rsplit(".", 1)[-1]: option for option in options}
    by_leaf = difflib.get_close_matches(name.rsplit(".", 1)[-1], leaves, n=1, cutoff=0.6)
    best = leaves[by_leaf[0]] if by_leaf else (near[0] if near else "")
    return f"; did you mean {best}?" if best else ""


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
