"""Turns a dataclass into a command line: YAML files, dotted overrides, strict names, ranges, generated help."""

import dataclasses
import difflib
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from ingot.launcher.config import aliases
from ingot.launcher.config.schema import yaml_file
from ingot.launcher.config.schema.help_text import help_text
from ingot.launcher.config.schema.options import PRESET, Kind, Option, options
from ingot.launcher.config.schema.values import Argument, Problem, Words, build, read_value
from ingot.launcher.runtime.exit_codes import BadInput
from ingot.model.huggingface.families.presets import PRESETS

T = TypeVar("T")

# Flags that launchers add to the command line of each worker.
_LAUNCHER_FLAGS = re.compile(r"--(local_rank|local-rank|deepspeed|deepspeed_config)(=.*)?$")


def parse(cls: type[T], argv: list[str], description: str, config: str | None = None) -> T:
    """Builds `cls` from `argv`.

    Args:
        cls: a dataclass; nested dataclasses become dotted options, field docstrings become the help.
        argv: `--config FILE`, then `--section.key value` overrides; what comes later wins. An option whose value is a
            list takes several words, and `--name+ value` adds to the list that is there.
        description: the first lines of `--help`.
        config: a YAML file to read before `argv`.

    Raises:
        BadInput: a file that cannot be read, unknown options (the nearest one is named), values of the wrong type or
            out of range: all that is wrong at once.
        SystemExit: for --help and --print_config.
    """
    argv = without_launcher_flags(argv)
    known = list(options(cls))
    if any(word in ("--help", "-h") for word in argv):
        print(help_text(known, description))
        raise SystemExit(0)
    sources = _Sources(cls, known)
    if config is not None:
        sources.file(config)
    sources.arguments(argv)
    found = sources.build()
    if sources.print_config:
        print(to_yaml(found), end="")
        raise SystemExit(0)
    return found


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


def to_yaml(instance: Any) -> str:
    """A configuration as a complete YAML text that `parse` reads back."""
    import yaml

    return yaml.safe_dump(_plain(dataclasses.asdict(instance)), sort_keys=False, allow_unicode=True)


class _Sources:
    """Joins files and arguments to one tree of values, and keeps what was wrong with them."""

    def __init__(self, cls: type, known: list[Option]):
        self.cls, self.names = cls, {option.name: option for option in known}
        self.tree: dict = {}
        self.places: yaml_file.Places = {}
        self.problems: list[Problem] = []
        self.print_config = False

    def file(self, path: str) -> None:
        """Takes in a YAML file.

        Raises:
            BadInput: it cannot be read, or is no YAML; then nothing else in it can be judged.
        """
        try:
            tree, places = yaml_file.read(path)
        except OSError as error:
            raise BadInput(f"cannot read the configuration {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise BadInput(str(error)) from error
        self.places |= places
        renamed: dict[str, str] = {}
        for name, value in self._leaves(tree, ""):
            new = self._set(name, value, renamed)
            self.places[new] = places.get(name, path)
        aliases.note(path, renamed)

    def arguments(self, argv: list[str]) -> None:
        """Takes in the words of the command line."""
        rest = deque(argv)
        renamed: dict[str, str] = {}
        while rest:
            word = rest.popleft()
            if not word.startswith("--") or word == "--":
                self.problems.append(Problem(word, "does not belong to an option; options are written as --NAME VALUE"))
                continue
            name, equals, text = word[2:].partition("=")
            name, adds = name.removesuffix("+"), name.endswith("+")
            values = [text] if equals else []
            new, _ = aliases.present(name, None, self.names)
            kind = self._kind(new)
            while rest and not equals and not rest[0].startswith("--"):
                if values and not (kind and _takes_another(kind, values)):
                    break
                values.append(rest.popleft())
            if name == "config":
                for path in values or self._missing(name):
                    self.file(path)
            elif name == "print_config":
                self.print_config = True
            elif not values and not (kind and kind.type is bool):
                self._missing(name)
            else:
                several = kind and kind.type in (list, tuple)
                value = Words(map(Argument, values)) if several else Argument(*values or ["true"])
                new = self._set(name, value, renamed, adds=adds)
                self.places.pop(new, None)
        aliases.note("the command line", renamed)

    def _missing(self, name: str) -> list[str]:
        self.problems.append(Problem(name, f"is given without a value; write --{name} VALUE"))
        return []

    def build(self) -> Any:
        """The configuration.

        Raises:
            BadInput: all problems.
        """
        aliases.count_window(self.tree)
        self._apply_preset("model")
        found = build(self.cls, self.tree, self.problems)
        if self.problems:
            raise BadInput("; ".join(self._said(problem) for problem in self.problems))
        return found

    def _apply_preset(self, section: str) -> None:
        """Puts the values of a family below those that are given."""
        given, option = self.tree.get(section), self.names.get(f"{section}.{PRESET}")
        if option is not None and isinstance(given, dict) and PRESET in given:
            given = dict(given)
            chosen = read_value(option.kind, given.pop(PRESET), option.name, self.problems)
            family = PRESETS.get(chosen, {})
            if others := [n for n, v in family.items() if n in given and str(given[n]).lower() != str(v).lower()]:
                aliases.say(f"{option.name} {chosen}: {', '.join(others)} given besides it counts instead")
            self.tree[section] = {**family, **given}

    def _kind(self, name: str) -> Kind | None:
        option = self.names.get(name)
        return option.kind if option else None

    def _leaves(self, tree: dict, prefix: str) -> Iterator[tuple[str, Any]]:
        """The values of a file by dotted name; a section is entered, the value of an option is left as it is."""
        for key, value in tree.items():
            name = f"{prefix}{key}"
            option = self.names.get(aliases.present(name, None, self.names)[0])
            if isinstance(value, dict) and (option.section if option else True) and value:
                yield from self._leaves(value, f"{name}.")
            elif option and option.section and not option.kind.optional and _is_null(value):
                continue  # an empty section leaves everything as it is
            else:
                yield name, value

    def _set(self, name: str, value: Any, renamed: dict[str, str], *, adds: bool = False) -> str:
        """Puts a value into the tree; its present name."""
        *sections, _ = name.split(".")
        for n in range(1, len(sections) + 1):  # a section may have been renamed too
            section = ".".join(sections[:n])
            if (now := aliases.present(section, None, self.names)[0]) != section:
                renamed[section] = now
                name = now + name[len(section) :]
        new, current = aliases.present(name, value, self.names)
        if new != name:
            renamed[name] = new
        elif isinstance(current, str) and isinstance(value, str) and current != value:
            renamed[f"{name} {value}"] = current
        option = self.names.get(new)
        if isinstance(value, Argument) and option and option.section:  # --model '{hidden_size: 64}'
            try:
                whole = yaml_file.parse_text(value, new)
            except ValueError as error:
                self.problems.append(Problem(new, str(error).removeprefix(f"{new}: ")))
                return new
            if _is_null(whole) and not option.kind.optional:
                return new  # as in a file: an empty section leaves everything as it is
            if isinstance(whole, dict):
                for inner_name, inner in self._leaves(whole, f"{new}."):
                    self._set(inner_name, inner, renamed)
                return new
        *sections, key = new.split(".")
        place = self.tree
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        if adds:
            before = place.get(key, [])
            if isinstance(before, Words) and len(before) == 1 and before[0].startswith("["):
                before = yaml_file.parse_text(before[0], new)
            more: Iterable[Any] = current if isinstance(current, list) else [current]
            current = Words([*(before if isinstance(before, list) else [before]), *more])
        place[key] = current
        return new

    def _said(self, problem: Problem) -> str:
        where = f" ({place})" if (place := self.places.get(problem.name)) else ""
        if problem.args[0] == f"{problem.name} is no option":
            return f"unknown option {problem.name}{where}{self._nearest(problem.name)}"
        return f"{problem}{where}"

    def _nearest(self, name: str) -> str:
        """The option that was probably meant: the same word in another section, what others call it, or a near miss of
        its name or its old name, in the same section first."""
        section, _, last = name.rpartition(".")
        leaves = [option.name for option in self.names.values() if not option.section]
        synonyms = aliases.SYNONYMS.get(last, ())

        def likeness(option: str) -> float:
            own_section, _, own = option.rpartition(".")
            names = [own, *(old.rpartition(".")[2] for old, new in aliases.OPTIONS.items() if new == option)]
            alike = max(difflib.SequenceMatcher(None, last, name).ratio() for name in names)
            if own in synonyms:
                alike = max(alike, 0.95 - 0.01 * synonyms.index(own))
                alike += 0.05 * (own_section == "task")  # what fine-tuning has of its own comes first
            return alike + (0.1 if own_section == section else 0)

        best = max(leaves, key=likeness, default="")
        return f"; did you mean {best}?" if best and likeness(best) > 0.55 else ""


def _takes_another(kind: Kind, words: list[str]) -> bool:
    """Whether an option of the command line that has these words takes one more."""
    if kind.type is tuple:
        return len(words) < len(kind.items) and not words[0].startswith(("[", "(")) and "," not in words[0]
    return kind.type is list


def _is_null(value: object) -> bool:
    return isinstance(value, yaml_file.Plain) and value in yaml_file.NULLS


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
