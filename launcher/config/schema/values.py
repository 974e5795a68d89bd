"""From what a user wrote to a configuration: each value is read as the type of its option has it, and all problems are
found in one pass."""

import dataclasses
from dataclasses import MISSING, is_dataclass
from typing import Any, Literal, TypeVar

from ingot.launcher.config.schema.options import Kind, default_of, kinds, written
from ingot.launcher.config.schema.yaml_file import NULLS, Plain, number, parse_text, resolved

T = TypeVar("T")

_TRUE = ("true", "yes", "on")
_FALSE = ("false", "no", "off")


class Argument(Plain):
    """The text of an option on the command line: for text taken as it is, else read as YAML."""


class Words(list):
    """Several words of the command line for one option."""


class Problem(ValueError):
    """What is wrong with one option: its name, and the rest of the sentence."""

    def __init__(self, name: str, text: str):
        super().__init__(f"{name} {text}")
        self.name = name


def build(cls: type[T], tree: dict, problems: list[Problem], *, name: str = "", start: Any = None) -> T | None:
    """An instance of a dataclass.

    Args:
        tree: values by field name, nested dicts for nested dataclasses; what is not there keeps its default.
        problems: gets everything that is wrong.
        name: dotted name of the section; "" for the whole.
        start: an instance with defaults other than the dataclass's own.

    Returns:
        None where something is wrong.
    """
    before, values = len(problems), {}
    prefix = f"{name}." if name else ""
    known = kinds(cls)  # type: ignore[arg-type]  # a class is hashable; mypy does not believe it of type[T]
    for key in tree:
        if key not in known:
            problems.append(Problem(f"{prefix}{key}", "is no option"))
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # T is a dataclass, which a TypeVar cannot say
        if not field.init:
            continue
        kind, full = known[field.name], f"{prefix}{field.name}"
        default = default_of(field) if start is None else getattr(start, field.name)
        if field.name in tree:
            values[field.name] = _read(kind, tree[field.name], full, default, problems)
        elif default is MISSING:
            problems.append(Problem(full, "is not given, and it has no default"))
        else:
            values[field.name] = default
    return None if len(problems) > before else cls(**values)


def read_value(kind: Kind, value: Any, name: str, problems: list[Problem]) -> Any:
    """The value of one option without a section; None after a problem, which `problems` gets."""
    return _read(kind, value, name, MISSING, problems)


def _read(kind: Kind, value: Any, name: str, default: Any, problems: list[Problem]) -> Any:
    """The value of one option; None after a problem."""
    if isinstance(value, Words):
        if kind.type is not list:
            value = value[0] if len(value) == 1 else [Plain(each) for each in value]
        elif len(value) == 1 and (value[0].lstrip().startswith(("[", "{")) or value[0] in (*NULLS[1:], "None")):
            value = value[0]
    if kind.optional and (value is None or (isinstance(value, Plain) and value in (*NULLS[1:], "None"))):
        return None
    if kind.optional and isinstance(value, Plain) and not isinstance(value, Argument) and value == "":
        return None
    if isinstance(value, Argument) and kind.type not in (str, Literal):
        try:
            value = _yaml(kind, value, name)
        except ValueError as error:
            problems.append(Problem(name, str(error).removeprefix(f"{name}: ")))
            return None
    reader = _READERS.get(kind.type)
    try:
        if reader is not None:
            return reader(kind, value, name)
        if kind.type is list:
            return _list(kind, value, name, problems)
        if kind.type is tuple:
            return _tuple(kind, value, name, problems)
        return _section(kind, value, name, default, problems)
    except Problem as problem:
        problems.append(problem)
        return None


def _yaml(kind: Kind, text: str, name: str) -> Any:
    if kind.type is list and kind.items[0].type in (str, Literal) and not text.lstrip().startswith("["):
        return [text]  # a text that may hold : or {
    if kind.type in (int, float, bool):
        return Plain(text.strip())
    records = kind.is_record or (kind.type is list and kind.items[0].is_record)
    if records and not text.lstrip().startswith(("[", "{")):
        return Plain(text)  # a path that may hold : as well
    return parse_text(text, name)


def _shown(value: Any) -> str:
    """A value as the user wrote it, shortened."""
    if value is None or (isinstance(value, Plain) and value in NULLS):
        return "null"
    text = str(resolved(value)) if isinstance(value, dict | list) else str(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text.encode(errors="backslashreplace").decode()


def _wrong(kind: Kind, value: Any, name: str, expected: str) -> Problem:
    return Problem(name, f"is {_shown(value)}; it must be {expected}{' or null' if kind.optional else ''}")


def _number(kind: Kind, value: Any, name: str) -> Any:
    whole = kind.type is int
    found = number(value.strip()) if isinstance(value, str) else value
    expected = "a whole number" if whole else "a number"
    if kind.range is not None and str(kind.range):
        expected += f" {kind.range}"
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise _wrong(kind, value, name, expected)
    if whole and isinstance(found, float):  # 1e5
        if not found.is_integer():
            raise _wrong(kind, value, name, expected)
        found = int(found)
    if not -(2**63) <= found < 2**63:  # NaN is neither
        raise _wrong(kind, value, name, expected)
    if kind.range is not None and found not in kind.range:
        raise _wrong(kind, value, name, expected)
    return found if whole else float(found)


def _bool(kind: Kind, value: Any, name: str) -> bool:
    text = str(value).lower()
    if not isinstance(value, str | bool) or text not in (*_TRUE, *_FALSE):
        raise _wrong(kind, value, name, "true or false")
    return text in _TRUE


def _text(kind: Kind, value: Any, name: str) -> str:
    if not isinstance(value, str) or (isinstance(value, Plain) and not isinstance(value, Argument) and value in NULLS):
        raise _wrong(kind, value, name, "a text")
    if not value.isprintable() and any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in value):
        raise _wrong(kind, value, name, "a text in UTF-8, without zero bytes")
    return str(value)


def _choice(kind: Kind, value: Any, name: str) -> Any:
    for choice in kind.choices:
        if isinstance(choice, bool):
            if isinstance(value, str | bool) and str(value).lower() in (_TRUE if choice else _FALSE):
                return choice
        elif isinstance(value, str | int) and not isinstance(value, bool) and str(value) == str(choice):
            return choice
    raise _wrong(kind, value, name, f"one of {', '.join(map(written, kind.choices))}")


def _dict(kind: Kind, value: Any, name: str) -> dict:
    if isinstance(value, Plain) and value in NULLS:
        return {}
    if not isinstance(value, dict):
        raise _wrong(kind, value, name, "a mapping, as {NAME: VALUE}")
    return resolved(value)  # type: ignore[return-value]  # a dict is resolved to a dict


def _list(kind: Kind, value: Any, name: str, problems: list[Problem]) -> list:
    [item] = kind.items
    if isinstance(value, Plain) and value in (*NULLS, "None"):
        value = []
    if isinstance(value, str) and value.lstrip().startswith("["):  # quoted, as the users of shells do
        try:
            value = parse_text(value, name)
        except ValueError as error:
            raise Problem(name, str(error).removeprefix(f"{name}: ")) from None
    if not isinstance(value, list):  # one instead of a list of one
        value = [value]
    return [_read(item, each, f"{name}[{n}]", MISSING, problems) for n, each in enumerate(value)]


def _tuple(kind: Kind, value: Any, name: str, problems: list[Problem]) -> tuple:
    if isinstance(value, str) and "," in value:  # 0.9, 0.95
        value = [Plain(part.strip()) for part in value.strip("()[] ").split(",")]
    if not isinstance(value, list) or len(value) != len(kind.items):
        raise _wrong(kind, value, name, f"a list of {len(kind.items)}")
    each = zip(kind.items, value, strict=True)
    return tuple(_read(item, one, f"{name}[{n}]", MISSING, problems) for n, (item, one) in enumerate(each))


def _section(kind: Kind, value: Any, name: str, default: Any, problems: list[Problem]) -> Any:
    first = dataclasses.fields(kind.type)[0].name
    if isinstance(value, Plain) and value in NULLS:
        value = {}
    is_path = isinstance(value, str) and not (isinstance(value, Plain) and value.lower() in (*_TRUE, *_FALSE))
    if is_path and first == "path":  # data.train: [corpora/mine]
        value = {first: value}
    if not isinstance(value, dict):
        names = ", ".join(field.name for field in dataclasses.fields(kind.type))
        raise _wrong(kind, value, name, f"a mapping of options: {names}")
    start = default if is_dataclass(default) else None
    return build(kind.type, value, problems, name=name, start=start)


_READERS = {int: _number, float: _number, bool: _bool, str: _text, Literal: _choice, dict: _dict}
