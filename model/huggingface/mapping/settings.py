"""Reading a config.json: each key by name, and all problems in one message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ingot.model.config import limits_of

REQUIRED = object()


@dataclass(frozen=True)
class Key:
    """A key of a config.json that corresponds to one field of a ModelConfig or TaskConfig.

    Attributes:
        theirs: The key.
        ours: The field.
        default: The value that transformers uses if the key is absent; REQUIRED if every checkpoint has the key.
        values: Values of the key and the corresponding values of the field; None if they are the same. If several keys
            have the same meaning, the first one is written.
    """

    theirs: str
    ours: str
    default: Any = REQUIRED
    values: Mapping[Any, Any] | None = None

    def written(self, value: Any) -> Any:
        if self.values is None:
            return value
        return next((theirs for theirs, ours in self.values.items() if ours == value), value)


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu_squared",
}
"""Names of activations in transformers (transformers/activations.py) and in a ModelConfig."""


class Settings:
    """A config.json, read key by key. All problems are collected in `problems`."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = values
        self.problems: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def take(self, key: Key) -> Any:
        """The value of the field of a key. If the key is missing or not supported: None, and a problem."""
        value = self.values.get(key.theirs, key.default)
        if value is REQUIRED:
            self.problems.append(f"{key.theirs} is missing")
            return None
        if key.values is None:
            return value
        if not isinstance(value, str | int) or value not in key.values:
            self.refuse(key.theirs, value, " or ".join(map(repr, key.values)))
            return None
        return key.values[value]

    def number(self, key: str, default: int | None = None) -> int:
        """An integer. If there is none: 1, and a problem."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.problems.append(f"{key} is missing" if value is None else f"{key} is {value!r}; it must be an integer")
            return 1
        _, largest, _, _ = limits_of(key, int)
        if largest is not None and abs(value) > largest:
            self.problems.append(f"{key} is {value!r}; it must be at most {largest}")
            return 1
        return value

    def probability(self, *keys: str) -> float:
        """The first of several keys that has a value, or 0. If it is no probability below 1: 0, and a problem."""
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                self.refuse(key, value, "a probability below 1")
                return 0.0
            return value
        return 0.0

    def only(self, key: str, supported: Any) -> None:
        """Checks a key that must be absent or have the only supported value."""
        value = self.values.get(key, supported)
        if value != supported and value is not None:
            self.refuse(key, value, repr(supported))

    def refuse(self, key: str, value: Any, supported: str) -> None:
        self.problems.append(f"{key} is {value!r}; supported is {supported}")

    def finish(self) -> None:
        """Raises one ValueError with all problems, if there are any."""
        if self.problems:
            raise ValueError("; ".join(self.problems))
