"""The set of labels of a task, and the labels of a record as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ingot.data.tasks.records import Record


def find_labels(values: Iterable[str]) -> list[str]:
    """All labels that occur, in numeric order if all are integers ("01" before "1"), otherwise in alphabetical
    order."""
    found = set(values)
    try:
        return sorted(found, key=lambda label: (int(label), label))
    except ValueError:
        return sorted(found)


def rename_labels(labels: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The labels under the names that a user gave them; a label may have its name already.

    Raises:
        ValueError: a name for a label that there is not, or one name for two labels.
    """
    if unknown := sorted(label for label, name in names.items() if label not in labels and name not in labels):
        raise ValueError(
            f"task.label_names names {', '.join(map(repr, unknown))}, and the labels are {', '.join(map(repr, labels))}"
        )
    renamed = [names.get(label, label) for label in labels]
    if twice := sorted({name for name in renamed if renamed.count(name) > 1}):
        raise ValueError(f"task.label_names gives more than one label the name {', '.join(map(repr, twice))}")
    return renamed


def class_name(record: Record, column: str) -> str:
    """The label of a record with one label.

    Raises:
        ValueError: it is not a text, integer or bool, or it is empty.
    """
    value = record.values[column]
    if isinstance(value, bool | int):
        return str(int(value))
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{record.where}: {column!r} is {value!r}; a label is a text or an integer")
    return value.strip()


def label_names(record: Record, column: str, separator: str = ",") -> list[str]:
    """The labels of a record with any number of them: a list, or a text with commas.

    Raises:
        ValueError: the value is neither.
    """
    value = record.values[column]
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()]
    if isinstance(value, list) and all(isinstance(part, str | int) for part in value):
        return [str(part) for part in value]
    raise ValueError(f"{record.where}: {column!r} is {value!r}; give a list of labels, or a text with commas")


def number_of(name: str, labels: Sequence[str], where: str) -> int:
    """The index of a label in the set.

    Raises:
        ValueError: the set does not have it.
    """
    try:
        return labels.index(name)
    except ValueError:
        shown = ", ".join(map(repr, labels[:10])) + (", ..." if len(labels) > 10 else "")
        raise ValueError(f"{where}: the label {name!r} is none of {shown}; set task.labels to all of them") from None


def number(record: Record, column: str) -> float:
    """The value in a column, as a number.

    Raises:
        ValueError: it is not a finite number.
    """
    value: Any = record.values[column]
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = float("nan")
    if result != result or result in (float("inf"), float("-inf")):
        raise ValueError(f"{record.where}: {column!r} is {value!r}, which is not a number")
    return result
