"""Which rank answers for which part of the state, where several hold the same.

Ranks tell rank 0 what they hold as rows of integers, and are told which rows are theirs to write; so thousands of ranks
with thousands of tensors each take a gigabyte on one of them, and none on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist

from ingot.parallel.catalog import Rectangle, Shard
from ingot.parallel.checkpoint.format import listed
from ingot.parallel.checkpoint.grid import Grid

GRID_FROM = 65
"""Rectangles of a tensor from which on a manifest has a grid instead of a list of them."""

Table = dict[str, tuple[tuple[int, ...], str]]
"""By tensor, in order: shape, and dtype as torch names it."""


@dataclass(frozen=True)
class Ownership:
    """What the ranks have agreed on.

    Args:
        names: of all tensors of all ranks.
        mine: of this rank's shards, those that it answers for.
        entries: on rank 0, what a manifest says of each tensor but for its digest.
    """

    names: list[str]
    mine: list[Shard]
    entries: dict[str, dict]


def agree(shards: list[Shard]) -> Ownership:
    """Shares out what the ranks hold. Each rank must call it, with its shards."""
    table = union({s.name: (tuple(s.global_shape), str(s.tensor.dtype).removeprefix("torch.")) for s in shards})
    held: list | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(rows_of(shards, table), held)
    entries: dict[str, dict] = {}
    masks: list | None = None
    if held is not None:
        masks, entries = share_out(held, table)
    mask: list = [None]
    dist.scatter_object_list(mask, masks)
    return Ownership(list(table), [shard for shard, mine in zip(shards, mask[0], strict=True) if mine], entries)


def union(mine: dict) -> dict:
    """All ranks' entries, sorted. Only what rank 0 does not have travels to it. Each rank must call it."""
    first = [mine]
    dist.broadcast_object_list(first)
    others: list | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object({name: value for name, value in mine.items() if name not in first[0]}, others)
    if others is not None:
        first = [dict(sorted({name: value for part in [*others, mine] for name, value in part.items()}.items()))]
    dist.broadcast_object_list(first)
    return first[0]


def rows_of(shards: list[Shard], table: Table) -> np.ndarray:
    """Shards as rows: number of the tensor in `table`, offset, shape, both filled up with -1 to as many dims as any."""
    number = {name: n for n, name in enumerate(table)}
    dims = max((len(shape) for shape, _ in table.values()), default=0)
    largest = max((max(shape, default=0) for shape, _ in table.values()), default=0)
    rows = np.full((len(shards), 1 + 2 * dims), -1, np.int32 if largest < 2**31 else np.int64)
    for row, shard in zip(rows, shards, strict=True):
        box, own = shard.rectangle, len(shard.global_shape)
        row[0], row[1 : 1 + own], row[1 + dims : 1 + dims + own] = number[shard.name], box.offset, box.shape
    return rows


def share_out(held: Sequence[np.ndarray], table: Table) -> tuple[list[np.ndarray], dict[str, dict]]:
    """Replicas are shared out evenly, by bytes.

    Args:
        held: for each rank, its rows (`rows_of`).

    Returns:
        For each rank, which of its rows it answers for; and what a manifest says of each tensor but for its digest.
    """
    rows = np.concatenate(held)
    ranks = np.repeat(np.arange(len(held), dtype=np.int32), [len(part) for part in held])
    dims = (rows.shape[1] - 1) // 2
    order = np.argsort(rows[:, 0], kind="stable")
    bounds = np.searchsorted(rows[order, 0], np.arange(len(table) + 1))
    known: dict[tuple, _Replicas] = {}  # layers and optimizer states are cut alike
    tensors = []
    for (name, (shape, dtype)), start, stop in zip(table.items(), bounds[:-1], bounds[1:], strict=True):
        at = order[start:stop]
        boxes = rows[at][:, [*range(1, 1 + len(shape)), *range(1 + dims, 1 + dims + len(shape))]]
        key = (shape, boxes.tobytes(), ranks[at].tobytes())
        if key not in known:
            known[key] = _Replicas(shape, boxes.astype(np.int64), ranks[at])
        tensors.append((name, dtype, at, known[key]))
    mask, load = np.zeros(len(rows), bool), np.zeros(len(held), np.int64)
    entries = {}
    # First what few ranks could write, and of that the largest: the small rest evens it out.
    for name, dtype, at, replicas in sorted(tensors, key=lambda t: (t[3].most, -t[3].bytes_of(t[1]), t[0])):
        width = getattr(torch, dtype).itemsize
        owner, cut = replicas.choose(load, width)
        mask[at[owner]] = True
        written = {"grid": cut.to_json()} if isinstance(cut, Grid) else {"rectangles": listed(name, cut)}
        entries[name] = {"shape": list(replicas.shape), "dtype": dtype, **written}
    return np.split(mask, np.cumsum([len(part) for part in held])[:-1]), {name: entries[name] for name in table}


class _Replicas:
    """The rectangles of a tensor, and which ranks hold each.

    Args:
        boxes: offset and shape of what is held, once for each holder.
        ranks: the holders.
    """

    def __init__(self, shape: tuple[int, ...], boxes: np.ndarray, ranks: np.ndarray):
        self.shape, self._ranks, dims = shape, ranks, len(shape)
        order = np.lexsort(boxes.T[::-1]) if dims else np.arange(len(ranks))
        boxes = boxes[order]
        new = np.concatenate([[True], (boxes[1:] != boxes[:-1]).any(axis=1)])
        starts = np.flatnonzero(new)
        counts = np.diff(np.append(starts, len(ranks)))
        self.most = int(counts.max())
        self._offsets, self._sizes = boxes[starts, :dims], boxes[starts, dims:]
        self._holders = np.split(order, starts[1:])  # row numbers, by rank
        self._even = np.stack(self._holders) if (counts == self.most).all() else None
        self._choices: dict[int, Grid | list[tuple[int, Rectangle]]] = {}

    @cached_property
    def _numel(self) -> np.ndarray:
        return self._sizes.prod(axis=1)

    def bytes_of(self, dtype: str) -> int:
        return int(self._numel.max()) * getattr(torch, dtype).itemsize

    def choose(self, load: np.ndarray, width: int) -> tuple[np.ndarray, Grid | list[tuple[int, Rectangle]]]:
        """The owners' rows, of ranks with little `load`, which grows by theirs; and which rank has which rectangle."""
        if self._even is None:  # rectangles that some ranks share and others do not
            owner = np.empty(len(self._holders), np.int64)
            for n, holders in enumerate(self._holders):
                owner[n] = holders[np.argmin(load[self._ranks[holders]])]
                load[self._ranks[owner[n]]] += self._numel[n] * width
            return owner, self._cut(owner)
        replica = int(np.argmin(load[self._ranks[self._even]].max(axis=0)))
        owner = self._even[:, replica]
        np.add.at(load, self._ranks[owner], self._numel * width)
        if replica not in self._choices:
            self._choices[replica] = self._cut(owner)
        return owner, self._choices[replica]

    def _cut(self, owner: np.ndarray) -> Grid | list[tuple[int, Rectangle]]:
        ranks = self._ranks[owner]
        if len(owner) >= GRID_FROM:
            grid = Grid.of(self.shape, self._offsets, self._sizes, ranks)
            if grid is not None:
                return grid
        boxes = zip(self._offsets.tolist(), self._sizes.tolist(), ranks.tolist(), strict=True)
        return [(rank, Rectangle(tuple(offset), tuple(size))) for offset, size, rank in boxes]
