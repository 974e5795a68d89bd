"""Tensors that are cut as a regular grid: many thousand rectangles in a few numbers."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ingot.parallel.catalog import Rectangle


@dataclass(frozen=True)
class Grid:
    """A tensor that is cut along its dims, each block of it in the file of one rank.

    Args:
        cuts: for each dim the first index of each block, and the dim's size after them.
        ranks: of the blocks, the last dim running fastest.
    """

    cuts: tuple[np.ndarray, ...]
    ranks: np.ndarray

    @staticmethod
    def of(shape: tuple[int, ...], offsets_ND: np.ndarray, sizes_ND: np.ndarray, ranks_N: np.ndarray) -> "Grid | None":
        """The grid that N rectangles form; None where they form none that fills the tensor."""
        cuts, index = [], np.zeros(len(ranks_N), np.int64)
        for dim, size in enumerate(shape):
            starts = np.unique(offsets_ND[:, dim])
            cut = np.append(starts, size)
            at = np.searchsorted(starts, offsets_ND[:, dim])
            if starts[0] != 0 or (np.diff(cut)[at] != sizes_ND[:, dim]).any():
                return None
            cuts.append(cut)
            index = index * len(starts) + at
        order = np.argsort(index)
        if not np.array_equal(index[order], np.arange(math.prod(len(cut) - 1 for cut in cuts))):
            return None
        return Grid(tuple(cuts), ranks_N[order])

    def blocks(self, within: Rectangle | None = None) -> Iterator[tuple[int, Rectangle]]:
        """Rank and rectangle of each block, or of those that have elements in common with `within`."""
        sides = []
        for dim, cut in enumerate(self.cuts):
            first, last = 0, len(cut) - 1
            if within is not None:
                start = within.offset[dim]
                first = int(np.searchsorted(cut, start, side="right")) - 1
                last = int(np.searchsorted(cut, start + within.shape[dim], side="left"))
            sides.append(range(max(0, first), min(last, len(cut) - 1)))
        for place in itertools.product(*sides):
            number = 0
            for cut, at in zip(self.cuts, place, strict=True):
                number = number * (len(cut) - 1) + at
            offset = tuple(int(cut[at]) for cut, at in zip(self.cuts, place, strict=True))
            ends = (int(cut[at + 1]) for cut, at in zip(self.cuts, place, strict=True))
            yield int(self.ranks[number]), Rectangle(offset, tuple(e - o for e, o in zip(ends, offset, strict=True)))

    def to_json(self) -> dict:
        """`sizes`: for each dim those of its blocks, in runs [size, count]; `ranks`: in runs [first, step, count]."""
        sizes = []
        for cut in self.cuts:
            runs = [(int(size), len(list(group))) for size, group in itertools.groupby(np.diff(cut))]
            sizes.append([[size, count] for size, count in runs])
        return {"sizes": sizes, "ranks": _runs(self.ranks)}

    @staticmethod
    def from_json(data: dict) -> "Grid":
        cuts = (
            np.cumsum([0, *(size for size, count in side for _ in range(count))], dtype=np.int64)
            for side in data["sizes"]
        )
        runs = [first + step * np.arange(count, dtype=np.int64) for first, step, count in data["ranks"]]
        return Grid(tuple(cuts), np.concatenate(runs))


def _runs(values: np.ndarray) -> list[list[int]]:
    """Cuts a sequence of integers into stretches with one step: [first, step, count]."""
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
