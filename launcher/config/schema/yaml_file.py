"""Strict reading of YAML: no duplicate keys, no surprises in the types of scalars, every error with file and line.

A scalar without quotes stays text here, as `Plain`. What it means follows from the type of its option (`values.py`): so
`1:30` is no number of seconds, `1e5` is a whole number where one is wanted, and a run may be named 2024.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_ALIASES = 16
"""With so few aliases the whole grows to 300 times the text at most, whatever they contain."""


class Plain(str):
    """A scalar without quotes: text, number, true, false or null, as its option has it."""


NULLS = ("", "~", "null", "Null", "NULL")
_INT = re.compile(r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.?(inf|nan|infinity)", re.IGNORECASE)

Tree = dict[str, object]
Places = dict[str, str]
"""Dotted name of a key to where it is written: "FILE, line N"."""


def scalar(text: str) -> object:
    """What a plain scalar is by itself, in YAML 1.2's core schema: None, bool, int, float or str."""
    if text in NULLS:
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    return number(str(text))


def number(text: str) -> int | float | str:
    """A text as a number, where it is one."""
    if len(text) > 400:
        return text
    if _INT.fullmatch(text):
        return int(text.replace("_", ""), 0 if text[1:2] in ("x", "o") else 10)
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def resolved(value: object) -> object:
    """A value with its plain scalars as what they are by themselves."""
    if isinstance(value, dict):
        return {key: resolved(item) for key, item in value.items()}
    if isinstance(value, list):
        return [resolved(item) for item in value]
    return scalar(value) if isinstance(value, Plain) else value


def read(path: str) -> tuple[Tree, Places]:
    """A configuration file as nested dicts, and where each key stands.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no YAML, has a key twice, or is no mapping; the message names file and line.
    """
    with Path(path).open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES:,} bytes, which no configuration is")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: the file is not UTF-8 text") from None
    places: Places = {}
    value = _parse(text, lambda line: f"{path}, line {line}", places)
    if value is None or (isinstance(value, Plain) and value in NULLS):
        return {}, places
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no mapping of options; write SECTION: and below it OPTION: VALUE")
    return value, places


def parse_text(text: str, name: str) -> object:
    """The value of an option that is written as YAML on the command line.

    Raises:
        ValueError: it is no YAML; the message begins with `name`.
    """
    return _parse(text, lambda line: name, {})


def _parse(text: str, place: Callable[[int], str], places: Places) -> object:
    import yaml

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is 20 times as fast, where it is there
        return _Builder(loader(str(text)), place, places).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{place(mark.line + 1 if mark else 1)}: {problem}") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ValueError(f"{place(1)}: {' '.join(str(error).split())}") from None


class _Builder:
    """Reads the events of PyYAML's parser; its own loader resolves scalars and lets a duplicate key win."""

    def __init__(self, events: Any, place: Callable[[int], str], places: Places):
        self.events, self.place, self.places = events, place, places
        self.anchors: dict[str, object] = {}
        self.num_aliases = 0

    def document(self) -> object:
        import yaml

        self.events.get_event()  # the stream begins
        if self.events.check_event(yaml.StreamEndEvent):
            return None
        self.events.get_event()
        value = self._node((), 0)
        self.events.get_event()
        if not self.events.check_event(yaml.StreamEndEvent):
            self._refuse(self.events.get_event(), "a second document begins here; a configuration is one")
        return value

    def _refuse(self, event: Any, problem: str) -> NoReturn:
        raise ValueError(f"{self.place(event.start_mark.line + 1)}: {problem}")

    def _node(self, path: tuple[str, ...], depth: int) -> object:
        import yaml

        event = self.events.get_event()
        if depth > MAX_DEPTH:
            self._refuse(event, f"more than {MAX_DEPTH} levels within each other")
        if isinstance(event, yaml.AliasEvent):
            self.num_aliases += 1
            if self.num_aliases > MAX_ALIASES:
                self._refuse(event, f"more than {MAX_ALIASES} aliases (*{event.anchor}); write the values out")
            if event.anchor not in self.anchors:
                self._refuse(event, f"alias *{event.anchor} has no anchor before it")
            return self.anchors[str(event.anchor)]
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            self._refuse(event, f"the tag {event.tag} is not read; leave it out")
        if isinstance(event, yaml.ScalarEvent):
            value: object = Plain(event.value) if event.implicit[0] and not event.style else event.value
        elif isinstance(event, yaml.SequenceStartEvent):
            items: list[object] = []
            while not self.events.check_event(yaml.SequenceEndEvent):
                items.append(self._node((*path, str(len(items))), depth + 1))
            self.events.get_event()
            value = items
        else:
            value = self._mapping(path, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = value
        return value

    def _mapping(self, path: tuple[str, ...], depth: int) -> Tree:
        import yaml

        found: Tree = {}
        merged: Tree = {}
        while not self.events.check_event(yaml.MappingEndEvent):
            event = self.events.peek_event()
            key = self._node(path, depth + 1)
            if not isinstance(key, str):
                self._refuse(event, "a key must be the name of an option")
            if key == "<<":
                for each in _listed(self._node(path, depth + 1)):
                    if not isinstance(each, dict):
                        self._refuse(event, "<< takes in a mapping")
                    merged = {**each, **merged}
                continue
            key = str(key)
            if key in found:
                self._refuse(event, f"{'.'.join((*path, key))} is given twice; leave one out")
            self.places[".".join((*path, key))] = self.place(event.start_mark.line + 1)
            found[key] = self._node((*path, key), depth + 1)
        self.events.get_event()
        return {**merged, **found}


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [value]
