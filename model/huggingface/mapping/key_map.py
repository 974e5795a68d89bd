"""Key maps as data: which of our parameters are which of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]

BODY = "@"
"""Stands, at the start of their names, for the prefix of the body's tensors: "bert." in a model with a head, nothing in
a file that holds the body alone."""


@dataclass(frozen=True)
class Row:
    """A module of ours, or several that they keep as one, and the module of theirs.

    Attributes:
        ours: Names of modules (then weight and bias go along, where ours have them) or of parameters, with `*` for the
            number of the layer. Several are one behind the other in theirs, along the outputs: q, k and v.
        theirs: Theirs, with `*` and `@`.
        transposed: Whether their matrices are (in, out): GPT-2's.
        twin: A second spelling of theirs. In a model with a tied head only `theirs` is written, otherwise both.
    """

    ours: str | tuple[str, ...]
    theirs: str
    transposed: bool = False
    twin: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass
class Placed:
    """One tensor of theirs and the parameters of ours that it holds."""

    name: str
    parts: list[str]
    shape: Shape
    transposed: bool
    twin: str | None = None


def arrange(rows: Sequence[Row], shapes: Mapping[str, Shape]) -> tuple[list[Placed], list[str]]:
    """Their tensors for parameters of ours, in the order of ours, and the names of ours that no row knows."""
    found: dict[str, list[tuple[int, str, Row]]] = {}
    twins, unknown = {}, []
    for name in shapes:
        match = _find(rows, name)
        if match is None:
            unknown.append(name)
            continue
        row, part, theirs, twin = match
        found.setdefault(theirs, []).append((part, name, row))
        twins[theirs] = twin
    placed = []
    for theirs, entries in found.items():
        entries.sort(key=lambda entry: entry[0])
        names = [name for _, name, _ in entries]
        shape = (sum(shapes[name][0] for name in names), *shapes[names[0]][1:])
        transposed = entries[0][2].transposed and len(shape) == 2
        placed.append(Placed(theirs, names, shape[::-1] if transposed else shape, transposed, twins[theirs]))
    return placed, unknown


def is_of(rows: Sequence[Row], theirs: str) -> bool:
    """Whether a name of theirs is one that these rows speak of, in a model of any depth."""
    return any(
        re.fullmatch(re.escape(spelling).replace(r"\*", r"\d+") + r"(\.(weight|bias))?", theirs)
        for row in rows
        for spelling in (row.theirs, row.twin)
        if spelling is not None
    )


def _find(rows: Sequence[Row], name: str) -> tuple[Row, int, str, str | None] | None:
    layer = next((piece for piece in name.split(".") if piece.isdigit()), None)
    pattern = name if layer is None else name.replace(f".{layer}.", ".*.", 1)
    module, _, kind = pattern.rpartition(".")
    for row in rows:
        for part, ours in enumerate(row.parts):
            if ours in (pattern, module):
                end = "" if ours == pattern else f".{kind}"
                theirs, twin = (
                    None if text is None else (text + end).replace("*", layer or "") for text in (row.theirs, row.twin)
                )
                return row, part, theirs, twin
    return None
