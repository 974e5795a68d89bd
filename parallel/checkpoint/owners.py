"""Which rank writes which part of the state, when several ranks hold the same part.

Each rank sends rank 0 a table of integers with a row for each of its shards. Rank 0 answers which rows the rank writes.
So thousands of ranks with thousands of tensors each need a gigabyte on rank 0, and little on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist

from ingot.parallel.checkpoint.format import rectangle_entries
from ingot.parallel.checkpoint.grid import Grid
from ingot.parallel.tensor_shards import Rectangle, TensorShard

GRID_FROM = 65
"""A tensor with at least so many rectangles is written to the manifest as a grid, if they form one."""

Table = dict[str, tuple[tuple[int, ...], str]]
"""For each tensor, in order: its shape, and its dtype as torch names it."""


@dataclass(frozen=True)
class Ownership:
    """Which shards each rank writes.

    Attributes:
        names: of all tensors of all ranks.
        mine: the shards that this rank writes.
        entries: on rank 0, the entry of each tensor in a manifest, without the digest.
    """

    names: list[str]
    mine: list[TensorShard]
    entries: dict[str, dict]


def agree_on_owners(shards: list[TensorShard]) -> Ownership:
    """Assigns each part of the state to one of the ranks that hold it. Each rank must call it, with its shards."""
    table = union({s.name: (tuple(s.global_shape), str(s.tensor.dtype).removeprefix("torch.")) for s in shards})
    held: list | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(rows_of(shards, table), held)
    entries: dict[str, dict] = {}
    masks: list | None = None
    if held is not None:
        masks, entries = assign_owners(held, table)
    mask: list = [None]
    dist.scatter_object_list(mask, masks)
    return Ownership(list(table), [shard for shard, mine in zip(shards, mask[0], strict=True) if mine], entries)


def union(mine: dict) -> dict:
    """The entries of all ranks, sorted by key. Ranks send only what rank 0 does not have. Each rank must call it."""
    first = [mine]
    dist.broadcast_object_list(first)
    others: list | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object({name: value for name, value in mine.items() if name not in first[0]}, others)
    if others is not None:
        first = [dict(sorted({name: value for part in [*others, mine] for name, value in part.items()}.items()))]
    dist.broadcast_object_list(first)
    return first[0]


def rows_of(shards: list[TensorShard], table: Table) -> np.ndarray:
    """A row for each shard: the number of the tensor in `table`, offset, and shape.

    Offset and shape have -1 for the dims that other tensors have and this one does not.
    """
    number = {name: n for n, name in enumerate(table)}
    dims = max((len(shape) for shape, _ in table.values()), default=0)
    largest = max((max(shape, default=0) for shape, _ in table.values()), default=0)
    rows = np.full((len(shards), 1 + 2 * dims), -1, np.int32 if largest < 2**31 else np.int64)
    for row, shard in zip(rows, shards, strict=True):
        rectangle, own = shard.rectangle, len(shard.global_shape)
        row[0], row[1 : 1 + own], row[1 + dims : 1 + dims + own] = number[shard.name], rectangle.offset, rectangle.shape
    return rows


def assign_owners(held: Sequence[np.ndarray], table: Table) -> tuple[list[np.ndarray], dict[str, dict]]:
    """Assigns each rectangle to one of the ranks that hold it, so that ranks write about equally many bytes.

    Args:
        held: for each rank its rows (`rows_of`).

    Returns:
        For each rank a mask of the rows that it writes; and the entry of each tensor in a manifest, without the digest.
    """
    rows = np.concatenate(held)
    ranks = np.repeat(np.arange(len(held), dtype=np.int32), [len(part) for part in held])
    dims = (rows.shape[1] - 1) // 2
    order = np.argsort(rows[:, 0], kind="stable")
    bounds = np.searchsorted(rows[order, 0], np.arange(len(table) + 1))
    known: dict[tuple, _Replicas] = {}  # layers and optimizer states are divided in the same way
    tensors = []
    for (name, (shape, dtype)), start, stop in zip(table.items(), bounds[:-1], bounds[1:], strict=True):
        at = order[start:stop]
        rectangles = rows[at][:, [*range(1, 1 + len(shape)), *range(1 + dims, 1 + dims + len(shape))]]
        key = (shape, rectangles.tobytes(), ranks[at].tobytes())
        if key not in known:
            known[key] = _Replicas(shape, rectangles.astype(np.int64), ranks[at])
        tensors.append((name, dtype, at, known[key]))
    mask, load = np.zeros(len(rows), bool), np.zeros(len(held), np.int64)
    entries = {}
    # First tensors that few ranks hold, and of these the largest: small ones then make the loads equal.
    for name, dtype, at, replicas in sorted(tensors, key=lambda t: (t[3].most, -t[3].bytes_of(t[1]), t[0])):
        width = getattr(torch, dtype).itemsize
        owner, layout = replicas.choose(load, width)
        mask[at[owner]] = True
        written = (
            {"grid": layout.to_json()} if isinstance(layout, Grid) else {"rectangles": rectangle_entries(name, layout)}
        )
        entries[name] = {"shape": list(replicas.shape), "dtype": dtype, **written}
    return np.split(mask, np.cumsum([len(part) for part in held])[:-1]), {name: entries[name] for name in table}


class _Replicas:
    """The rectangles of a tensor, and the ranks that hold each.

    Args:
        rectangles: offset and shape, a row for each rank that holds a rectangle.
        ranks: these ranks.
    """

    def __init__(self, shape: tuple[int, ...], rectangles: np.ndarray, ranks: np.ndarray):
        self.shape, self._ranks, dims = shape, ranks, len(shape)
        order = np.lexsort(rectangles.T[::-1]) if dims else np.arange(len(ranks))
        rectangles = rectangles[order]
        new = np.concatenate([[True], (rectangles[1:] != rectangles[:-1]).any(axis=1)])
        starts = np.flatnonzero(new)
        counts = np.diff(np.append(starts, len(ranks)))
        self.most = int(counts.max())
        self._offsets, self._sizes = rectangles[starts, :dims], rectangles[starts, dims:]
        self._holders = np.split(order, starts[1:])  # row numbers, by rank
        self._even = np.stack(self._holders) if (counts == self.most).all() else None
        self._choices: dict[int, Grid | list[tuple[int, Rectangle]]] = {}

    @cached_property
    def _numel(self) -> np.ndarray:
        return self._sizes.prod(axis=1)

    def bytes_of(self, dtype: str) -> int:
        return int(self._numel.max()) * getattr(torch, dtype).itemsize

    def choose(self, load: np.ndarray, width: int) -> tuple[np.ndarray, Grid | list[tuple[int, Rectangle]]]:
        """Chooses ranks with small `load` as owners, and adds their bytes to it.

        Returns:
            The rows of the owners; and the rectangles with their ranks, as a grid or a list.
        """
        if self._even is None:  # different numbers of ranks hold the rectangles
            owner = np.empty(len(self._holders), np.int64)
            for n, holders in enumerate(self._holders):
                owner[n] = holders[np.argmin(load[self._ranks[holders]])]
                load[self._ranks[owner[n]]] += self._numel[n] * width
            return owner, self._layout(owner)
        replica = int(np.argmin(load[self._ranks[self._even]].max(axis=0)))
        owner = self._even[:, replica]
        np.add.at(load, self._ranks[owner], self._numel * width)
        if replica not in self._choices:
            self._choices[replica] = self._layout(owner)
        return owner, self._choices[replica]

    def _layout(self, owner: np.ndarray) -> Grid | list[tuple[int, Rectangle]]:
        ranks = self._ranks[owner]
        if len(owner) >= GRID_FROM:
            grid = Grid.of(self.shape, self._offsets, self._sizes, ranks)
            if grid is not None:
                return grid
        rectangles = zip(self._offsets.tolist(), self._sizes.tolist(), ranks.tolist(), strict=True)
        return [(rank, Rectangle(tuple(offset), tuple(size))) for offset, size, rank in rectangles]
