"""The options of a command, read from its dataclass: name, type, range, default and meaning."""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ingot.launcher.config.schema.types import Range
from ingot.model.config import ModelConfig, RopeScaling, limits_of
from ingot.model.huggingface.families.presets import PRESETS

PRESET = "preset"
PRESET_MEANING = (
    "Sets the other options of the model as this family of transformers has them, all but the size. Options that are "
    "given, in a file or on the command line, win. The configuration of a run holds what it has set, and not its name."
)


@dataclass(frozen=True)
class Kind:
    """What a type hint says of a value.

    Attributes:
        type: int, float, bool, str, list, tuple, dict, Literal, or a dataclass.
        range: of a number; None where any does.
        items: the kinds of the items of a list (one) or tuple (each).
        choices: of a Literal.
        optional: whether null is a value.
    """

    type: Any
    range: Range | None = None
    items: tuple["Kind", ...] = ()
    choices: tuple = ()
    optional: bool = False

    def __str__(self) -> str:
        """As a reader of the help has it."""
        if self.type is Literal:
            text = ", ".join(map(written, self.choices))
        elif self.type is list:
            text = f"list of {self.items[0].plural}"
        elif self.type is tuple:
            text = f"{len(self.items)} {self.items[0].plural}"
        elif self.is_record:
            text = "{" + ", ".join(each.name for each in dataclasses.fields(self.type)) + "}"
        else:
            names = {int: "whole number", float: "number", str: "text", bool: "true, false", dict: "mapping"}
            text = names[self.type] + (f" {self.range}" if self.range is not None and str(self.range) else "")
        return f"{text}, null" if self.optional else text

    @property
    def is_record(self) -> bool:
        """Whether its values are dataclasses."""
        return is_dataclass(self.type)

    @property
    def plural(self) -> str:
        names = {int: "whole numbers", float: "numbers", str: "texts"}
        if self.type not in names:
            return str(self)
        return names[self.type] + (f" {self.range}" if self.range is not None and str(self.range) else "")


def kind_of(hint: Any) -> Kind:
    """What a type hint says of a value."""
    limits = None
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        limits = next((extra for extra in extras if isinstance(extra, Range)), None)
    if get_origin(hint) in (Union, UnionType):
        inner = [each for each in get_args(hint) if each is not NoneType]
        assert len(inner) == 1, f"an option has one type, or that and null: {hint}"
        return dataclasses.replace(kind_of(inner[0]), optional=True)
    if get_origin(hint) is Literal:
        return Kind(Literal, choices=get_args(hint))
    if get_origin(hint) in (list, tuple):
        return Kind(get_origin(hint), items=tuple(kind_of(each) for each in get_args(hint)))
    if get_origin(hint) is dict:
        return Kind(dict)
    assert hint in (int, float, bool, str, dict) or is_dataclass(hint), f"no type of an option: {hint}"
    return Kind(hint, limits)


@cache
def kinds(cls: type) -> dict[str, Kind]:
    """The kinds of a dataclass's fields by name."""
    hints = get_type_hints(cls, include_extras=True)
    found = {field.name: kind_of(hints[field.name]) for field in dataclasses.fields(cls) if field.init}
    if cls in (ModelConfig, RopeScaling):  # they know no types of the launcher; their limits are in model/config.py
        for name, kind in found.items():
            if kind.type in (int, float):
                found[name] = dataclasses.replace(kind, range=Range(*limits_of(name, kind.type)))
            elif kind.type is list:
                items = tuple(Kind(each.type, Range(*limits_of(name, each.type))) for each in kind.items)
                found[name] = dataclasses.replace(kind, items=items)
    return found


@dataclass(frozen=True)
class Option:
    """One option of a command; `section` where it holds others below it."""

    name: str
    kind: Kind
    default: object
    meaning: str
    section: bool = False

    @property
    def required(self) -> bool:
        return self.default is MISSING


def options(cls: type, prefix: str = "", start: object = None) -> Iterator[Option]:
    """The options of a dataclass, and of the dataclasses in it, by dotted name.

    Args:
        start: an instance with the defaults, where they are other than the dataclass's own.
    """
    if cls is ModelConfig:
        yield Option(f"{prefix}{PRESET}", Kind(Literal, choices=tuple(PRESETS), optional=True), None, PRESET_MEANING)
    said = meanings(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        kind, name = kinds(cls)[field.name], f"{prefix}{field.name}"
        default = getattr(start, field.name) if start is not None else default_of(field)
        section = kind.is_record
        yield Option(name, kind, default, said.get(field.name, ""), section)
        if section:
            yield from options(kind.type, f"{name}.", default if is_dataclass(default) else None)


def default_of(field: dataclasses.Field) -> object:
    """The default of a field; MISSING where a value must be given."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


@cache
def meanings(cls: type) -> dict[str, str]:
    """What the docstring below each field says, or the class's docstring under "Attributes:"."""
    from docstring_parser import parse_from_object

    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        for part in parse_from_object(base).params:
            text = " ".join((part.description or "").split())
            for name in part.arg_name.split(", "):
                found[name] = text
    for field in dataclasses.fields(cls):
        if not found.get(field.name) and kinds(cls)[field.name].is_record:
            found[field.name] = " ".join((kinds(cls)[field.name].type.__doc__ or "").split("\n\n")[0].split())
    return found


def written(value: object) -> str:
    """A default as it would be written in a file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w./{}*:-]+", value) else '"' + value.replace("\n", "\\n") + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    return str(value)
