"""A shard is a list of rectangles of logical tensors.

Whatever an engine holds (a whole tensor, a flat ZeRO fragment, a slice) is described here as `Shard`s: a logical
name, the shape of the whole tensor, the offset of a rectangle in it, and a live view of that rectangle. Saving reads
the views, loading writes them, and neither needs to know the engine.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rectangle:
    """An axis-aligned box of a tensor: `offset[d] <= index[d] < offset[d] + shape[d]` for each dim d."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def intersect(self, other: "Rectangle") -> "Rectangle | None":
        offset = tuple(max(a, b) for a, b in zip(self.offset, other.offset, strict=True))
        ends = [
            min(a + m, b + n) for a, m, b, n in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        ]
        shape = tuple(end - start for start, end in zip(offset, ends, strict=True))
        return Rectangle(offset, shape) if all(n > 0 for n in shape) else None

    def slices_within(self, outer: "Rectangle") -> tuple[slice, ...]:
        """Index of this box in a tensor that holds `outer`."""
        return tuple(slice(a - b, a - b + n) for a, b, n in zip(self.offset, outer.offset, self.shape, strict=True))


@dataclass(frozen=True)
class Shard:
    """A rectangle of one logical tensor and the live view of it that this rank holds."""

    name: str
    global_shape: tuple[int, ...]
    rectangle: Rectangle
    tensor: torch.Tensor

    @property
    def key(self) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        """Says which part of which tensor this is: equal keys on several ranks are replicas."""
        return (self.name, self.rectangle.offset, self.rectangle.shape)


@dataclass(frozen=True)
class Placement:
    """Where a tensor that a rank holds lies in a logical one: its first `size` entries along `dim` are the entries
    [start, start + size) there. What it has more is padding."""

    global_shape: tuple[int, ...]
    dim: int
    start: int
    size: int


def place(shards: list[Shard], placements: dict[str, Placement]) -> list[Shard]:
    """Shards of a rank's own tensors as shards of the logical ones, by the parameter's name; padding is left out.

    Args:
        placements: by parameter; tensors of other parameters are logical ones already.
    """
    placed = []
    for shard in shards:
        placement = placements.get(parameter_of(shard.name))
        if placement is None:
            placed.append(shard)
            continue
        dim, box = placement.dim, shard.rectangle
        size = min(box.shape[dim], placement.size - box.offset[dim])
        if size > 0:
            offset, shape = list(box.offset), list(box.shape)
            offset[dim], shape[dim] = offset[dim] + placement.start, size
            view = shard.tensor.narrow(dim, 0, size)
            placed.append(Shard(shard.name, placement.global_shape, Rectangle(tuple(offset), tuple(shape)), view))
    return placed


def parameter_of(name: str) -> str:
    """The parameter that `model/NAME` or `optimizer/STATE/NAME` is, or belongs to."""
    return name.split("/", 2 if name.startswith("optimizer/") else 1)[-1]


def whole(name: str, tensor: torch.Tensor) -> Shard:
    shape = tuple(tensor.shape)
    return Shard(name, shape, Rectangle((0,) * len(shape), shape), tensor)


def flat_shards(name: str, global_shape: tuple[int, ...], start: int, flat: torch.Tensor) -> list[Shard]:
    """The elements [start, start + len(flat)) of a row-major tensor, as shards that are views of `flat` (1-D)."""
    shards, at = [], 0
    for rectangle in flat_range_rectangles(global_shape, start, start + flat.numel()):
        view = flat[at : at + rectangle.numel].view(rectangle.shape)
        shards.append(Shard(name, tuple(global_shape), rectangle, view))
        at += rectangle.numel
    return shards


def flat_range_rectangles(shape: tuple[int, ...], start: int, stop: int) -> list[Rectangle]:
    """Cuts the flat range [start, stop) of a row-major tensor into rectangles, in order: at most 2 * dims - 1 of them.

    A matrix gives a part of a row, whole rows, and a part of a row.
    """
    return list(_cut(tuple(shape), start, stop)) if stop > start else []


def _cut(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Rectangle]:
    if len(shape) <= 1:
        yield Rectangle((start,) * len(shape), (stop - start,) * len(shape))
        return
    inner = math.prod(shape[1:])
    first, last = start // inner, (stop - 1) // inner
    if first == last and stop - start < inner:
        yield from _in_row(shape, first, start - first * inner, stop - first * inner)
        return
    rows_from = first if start == first * inner else first + 1
    rows_to = last + 1 if stop == (last + 1) * inner else last
    if rows_from > first:
        yield from _in_row(shape, first, start - first * inner, inner)
    if rows_to > rows_from:
        yield Rectangle((rows_from, *[0] * (len(shape) - 1)), (rows_to - rows_from, *shape[1:]))
    if rows_to <= last:
        yield from _in_row(shape, last, 0, stop - last * inner)


def _in_row(shape: tuple[int, ...], row: int, start: int, stop: int) -> Iterator[Rectangle]:
    for rectangle in _cut(shape[1:], start, stop):
        yield Rectangle((row, *rectangle.offset), (1, *rectangle.shape))
