"""Reading a config.json: each key by name, and all that cannot be had from it in one message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REQUIRED = object()


@dataclass(frozen=True)
class Key:
    """One key of a config.json that is one field of ours.

    Attributes:
        theirs: The key.
        ours: The field.
        default: What transformers takes where the key is absent; REQUIRED where a checkpoint always has it.
        values: Their values and what ours are; None where they are the same. The first of several that mean the same
            is the one that is written.
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
"""Their names of activations (transformers/activations.py), and ours."""


class Settings:
    """A config.json, read key by key. What is wrong is collected in `problems`."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = values
        self.problems: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def take(self, key: Key) -> Any:
        """The value of a field of ours; None, and a problem, where there is none."""
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
        """A whole number; 1, and a problem, where there is none."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.problems.append(f"{key} is missing" if value is None else f"{key} is {value!r}; a whole number is due")
            return 1
        return value

    def only(self, key: str, supported: Any) -> None:
        """A key that must be absent or have the one value that we can represent."""
        value = self.values.get(key, supported)
        if value != supported and value is not None:
            self.refuse(key, value, repr(supported))

    def refuse(self, key: str, value: Any, supported: str) -> None:
        self.problems.append(f"{key} is {value!r}, and what is supported is {supported}")

    def finish(self) -> None:
        """Raises one ValueError with all problems, if there are any."""
        if self.problems:
            raise ValueError("; ".join(self.problems))
