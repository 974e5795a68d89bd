"""A shard is a rectangle of a logical tensor.

A logical tensor is a whole parameter or optimizer state under the model's name, in every layout. Engines hold whole
tensors, flat ZeRO fragments or slices of them. All of these are described here as `TensorShard`s: the name of the
logical tensor, its shape, the offset of a rectangle in it, and a view of that rectangle. Saving reads the views, and
loading writes into them. Neither needs to know the engine.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rectangle:
    """The elements of a tensor with `offset[d] <= index[d] < offset[d] + shape[d]` in each dim d."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def intersect(self, other: "Rectangle") -> "Rectangle | None":
        """The elements that both have. None: there are none."""
        offset = tuple(max(a, b) for a, b in zip(self.offset, other.offset, strict=True))
        ends = [
            min(a + m, b + n) for a, m, b, n in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        ]
        shape = tuple(end - start for start, end in zip(offset, ends, strict=True))
        return Rectangle(offset, shape) if all(n > 0 for n in shape) else None

    def slices_within(self, outer: "Rectangle") -> tuple[slice, ...]:
        """The index of this rectangle in a tensor that holds `outer`."""
        return tuple(slice(a - b, a - b + n) for a, b, n in zip(self.offset, outer.offset, self.shape, strict=True))


@dataclass(frozen=True)
class TensorShard:
    """A rectangle of one logical tensor, and the view of it that this rank holds.

    Attributes:
        name: `model/PARAMETER` or `optimizer/STATE/PARAMETER`.
        global_shape: shape of the logical tensor.
        tensor: of the rectangle's shape. Writing into it changes the state of the engine.
    """

    name: str
    global_shape: tuple[int, ...]
    rectangle: Rectangle
    tensor: torch.Tensor

    @property
    def key(self) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        """Which part of which tensor this is. Shards of several ranks with equal keys are replicas."""
        return (self.name, self.rectangle.offset, self.rectangle.shape)


@dataclass(frozen=True)
class TensorSlice:
    """The slice of a logical tensor that a rank's local tensor is.

    The first `size` entries of the local tensor along `dim` are the entries [start, start + size) of the logical one.
    Further entries are padding.
    """

    global_shape: tuple[int, ...]
    dim: int
    start: int
    size: int


def to_global(shards: list[TensorShard], slices: dict[str, TensorSlice]) -> list[TensorShard]:
    """Turns shards of a rank's local tensors into shards of the logical tensors. Padding is left out.

    Args:
        slices: by parameter. The local tensors of other parameters are the logical ones.
    """
    found = []
    for shard in shards:
        part = slices.get(parameter_of(shard.name))
        if part is None:
            found.append(shard)
            continue
        dim, local = part.dim, shard.rectangle
        size = min(local.shape[dim], part.size - local.offset[dim])
        if size > 0:
            offset, shape = list(local.offset), list(local.shape)
            offset[dim], shape[dim] = offset[dim] + part.start, size
            view = shard.tensor.narrow(dim, 0, size)
            found.append(TensorShard(shard.name, part.global_shape, Rectangle(tuple(offset), tuple(shape)), view))
    return found


def parameter_of(name: str) -> str:
    """The name of the parameter that `model/NAME` or `optimizer/STATE/NAME` belongs to."""
    return name.split("/", 2 if name.startswith("optimizer/") else 1)[-1]


def whole_shard(name: str, tensor: torch.Tensor) -> TensorShard:
    """A whole logical tensor as one shard."""
    shape = tuple(tensor.shape)
    return TensorShard(name, shape, Rectangle((0,) * len(shape), shape), tensor)


def flat_shards(name: str, global_shape: tuple[int, ...], start: int, flat: torch.Tensor) -> list[TensorShard]:
    """The elements [start, start + len(flat)) of a row-major tensor, as shards that are views of `flat` (1-D)."""
    shards, at = [], 0
    for rectangle in flat_range_rectangles(global_shape, start, start + flat.numel()):
        view = flat[at : at + rectangle.numel].view(rectangle.shape)
        shards.append(TensorShard(name, tuple(global_shape), rectangle, view))
        at += rectangle.numel
    return shards


def flat_range_rectangles(shape: tuple[int, ...], start: int, stop: int) -> list[Rectangle]:
    """Divides the flat range [start, stop) of a row-major tensor into at most 2 * dims - 1 rectangles, in order.

    A range of a matrix gives a part of a row, whole rows, and a part of a row.
    """
    return list(_divide(tuple(shape), start, stop)) if stop > start else []


def _divide(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Rectangle]:
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
    for rectangle in _divide(shape[1:], start, stop):
        yield Rectangle((row, *rectangle.offset), (1, *rectangle.shape))
