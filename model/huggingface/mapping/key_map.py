"""Key maps as data: which parameters of Ingot correspond to which tensors of a released checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]

BODY = "@"
"""At the start of a tensor name it stands for the prefix of the body: "bert." in a model with a head, nothing in a file
that holds only the body."""


@dataclass(frozen=True)
class Row:
    """A row of a key map: a module of Ingot, or several that the checkpoint stores as one, and the checkpoint's module.

    Attributes:
        ours: Names of modules (with weight and bias) or of parameters, with `*` for the number of the layer. Several
            are concatenated in the checkpoint along the outputs: q, k and v.
        theirs: Name in the checkpoint, with `*` and `@`.
        transposed: Whether the matrices of the checkpoint are (in, out), as in GPT-2.
        twin: A second name in the checkpoint. In a model with a tied head only `theirs` is written, otherwise both.
    """

    ours: str | tuple[str, ...]
    theirs: str
    transposed: bool = False
    twin: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass
class MappedTensor:
    """A tensor of a checkpoint and the parameters of Ingot that it holds."""

    name: str
    parts: list[str]
    shape: Shape
    transposed: bool
    twin: str | None = None


def map_tensors(rows: Sequence[Row], shapes: Mapping[str, Shape]) -> tuple[list[MappedTensor], list[str]]:
    """The tensors of a checkpoint for parameters of Ingot, in their order, and the parameters that no row names."""
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
    mapped = []
    for theirs, entries in found.items():
        entries.sort(key=lambda entry: entry[0])
        names = [name for _, name, _ in entries]
        shape = (sum(shapes[name][0] for name in names), *shapes[names[0]][1:])
        transposed = entries[0][2].transposed and len(shape) == 2
        mapped.append(MappedTensor(theirs, names, shape[::-1] if transposed else shape, transposed, twins[theirs]))
    return mapped, unknown


def is_named(rows: Sequence[Row], theirs: str) -> bool:
    """Whether a tensor of a checkpoint is named by one of these rows, in a model of any depth."""
    return any(
        re.fullmatch(re.escape(name).replace(r"\*", r"\d+") + r"(\.(weight|bias))?", theirs)
        for row in rows
        for name in (row.theirs, row.twin)
        if name is not None
    )


def _find(rows: Sequence[Row], name: str) -> tuple[Row, int, str, str | None] | None:
    layer = next((piece for piece in name.split(".") if piece.isdigit()), None)
    pattern = name if layer is None else name.replace(f".{layer}.", ".*.", 1)
    module, _, kind = pattern.rpartition(".")
    for row in rows:
        for part, ours in enumerate(row.parts):
            if ours in (pattern, module):
                suffix = "" if ours == pattern else f".{kind}"
                theirs = (row.theirs + suffix).replace("*", layer or "")
                twin = None if row.twin is None else (row.twin + suffix).replace("*", layer or "")
                return row, part, theirs, twin
    return None
