"""Filters on the columns of records: `lang=en`, `score>=0.5`. They are compared, never evaluated as code."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_CONDITION = re.compile(r"\s*([A-Za-z_][\w.\-]*)\s*(!=|>=|<=|==|=|>|<)\s*(.*?)\s*", re.DOTALL)
_COMPARE: dict[str, Callable] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
}


@dataclass(frozen=True)
class Condition:
    """One comparison. Two numbers are compared as numbers, everything else as text (so ISO dates work)."""

    column: str
    operator: str
    value: str

    def holds(self, record: Mapping) -> bool:
        """Whether `record` passes; a record without the column does not. `a.b` names a column of a nested record."""
        found = lookup(record, self.column)
        if found is None or isinstance(found, list | dict):
            return False
        if isinstance(found, bool):
            return _COMPARE[self.operator](str(found).lower(), self.value.lower())
        left, right = _number(found), _number(self.value)
        if left is not None and right is not None:
            return _COMPARE[self.operator](left, right)
        return _COMPARE[self.operator](str(found), self.value)


@dataclass(frozen=True)
class Filter:
    """Several conditions, which must all hold."""

    conditions: tuple[Condition, ...] = ()

    @property
    def columns(self) -> list[str]:
        return sorted({condition.column for condition in self.conditions})

    def passes(self, record: Mapping) -> bool:
        return all(condition.holds(record) for condition in self.conditions)


def parse_filter(expressions: Sequence[str]) -> Filter:
    """Raises ValueError for an expression that is not COLUMN OPERATOR VALUE."""
    conditions = []
    for expression in expressions:
        match = _CONDITION.fullmatch(expression)
        if match is None:
            raise ValueError(
                f"the filter {expression!r} is not of the form COLUMN=VALUE (or !=, >, >=, <, <=), "
                f"such as lang=en or score>=0.5"
            )
        column, operator, value = match.groups()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        conditions.append(Condition(column, "=" if operator == "==" else operator, value))
    return Filter(tuple(conditions))


def lookup(record: Mapping, column: str) -> Any:
    """record[column], or for `a.b` record["a"]["b"]; None if there is no such column."""
    if column in record:
        return record[column]
    value: object = record
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _number(value: object) -> float | int | None:
    if isinstance(value, int | float):
        return value
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
