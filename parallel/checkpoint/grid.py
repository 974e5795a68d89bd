"""Tensors that are divided into a regular grid: a few numbers instead of thousands of rectangles."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ingot.parallel.tensor_shards import Rectangle


@dataclass(frozen=True)
class Grid:
    """A tensor that is divided along its dims. Each block is in the file of one rank.

    Attributes:
        bounds: for each dim the first index of each block, and then the size of the dim.
        ranks: of the blocks, in row-major order.
    """

    bounds: tuple[np.ndarray, ...]
    ranks: np.ndarray

    @staticmethod
    def of(shape: tuple[int, ...], offsets_ND: np.ndarray, sizes_ND: np.ndarray, ranks_N: np.ndarray) -> "Grid | None":
        """The grid that N rectangles form. None: they form no grid that fills the tensor."""
        bounds, index = [], np.zeros(len(ranks_N), np.int64)
        for dim, size in enumerate(shape):
            starts = np.unique(offsets_ND[:, dim])
            ends = np.append(starts, size)
            at = np.searchsorted(starts, offsets_ND[:, dim])
            if starts[0] != 0 or (np.diff(ends)[at] != sizes_ND[:, dim]).any():
                return None
            bounds.append(ends)
            index = index * len(starts) + at
        order = np.argsort(index)
        if not np.array_equal(index[order], np.arange(math.prod(len(ends) - 1 for ends in bounds))):
            return None
        return Grid(tuple(bounds), ranks_N[order])

    def blocks(self, within: Rectangle | None = None) -> Iterator[tuple[int, Rectangle]]:
        """The rank and the rectangle of each block, or only of blocks that have elements in common with `within`."""
        sides = []
        for dim, bounds in enumerate(self.bounds):
            first, last = 0, len(bounds) - 1
            if within is not None:
                start = within.offset[dim]
                first = int(np.searchsorted(bounds, start, side="right")) - 1
                last = int(np.searchsorted(bounds, start + within.shape[dim], side="left"))
            sides.append(range(max(0, first), min(last, len(bounds) - 1)))
        for index in itertools.product(*sides):
            number = 0
            for bounds, at in zip(self.bounds, index, strict=True):
                number = number * (len(bounds) - 1) + at
            offset = tuple(int(bounds[at]) for bounds, at in zip(self.bounds, index, strict=True))
            ends = (int(bounds[at + 1]) for bounds, at in zip(self.bounds, index, strict=True))
            yield int(self.ranks[number]), Rectangle(offset, tuple(e - o for e, o in zip(ends, offset, strict=True)))

    def to_json(self) -> dict:
        """`sizes`: for each dim those of its blocks, as runs [size, count]; `ranks`: as runs [first, step, count]."""
        sizes = []
        for bounds in self.bounds:
            runs = [(int(size), len(list(group))) for size, group in itertools.groupby(np.diff(bounds))]
            sizes.append([[size, count] for size, count in runs])
        return {"sizes": sizes, "ranks": _runs(self.ranks)}

    @staticmethod
    def from_json(data: dict) -> "Grid":
        bounds = (
            np.cumsum([0, *(size for size, count in side for _ in range(count))], dtype=np.int64)
            for side in data["sizes"]
        )
        runs = [first + step * np.arange(count, dtype=np.int64) for first, step, count in data["ranks"]]
        return Grid(tuple(bounds), np.concatenate(runs))


def _runs(values: np.ndarray) -> list[list[int]]:
    """Divides a sequence of integers into runs with a constant step: [first, step, count]."""
    steps = np.diff(values)
    changes = np.flatnonzero(np.diff(steps)) + 1  # steps[c] differs from steps[c - 1]
    found, at = [], 0
    while at < len(values):
        if at == len(values) - 1:
            found.append([int(values[at]), 0, 1])
            break
        later = np.searchsorted(changes, at, side="right")
        last = int(changes[later]) if later < len(changes) else len(values) - 1
        found.append([int(values[at]), int(steps[at]), last - at + 1])
        at = last + 1
    return found
