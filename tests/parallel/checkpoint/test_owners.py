"""Which rank writes what, and how a manifest says it, for thousands of ranks as for one."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from ingot.parallel.checkpoint.format import stored_shards
from ingot.parallel.checkpoint.grid import Grid
from ingot.parallel.checkpoint.manifest import make_manifest
from ingot.parallel.checkpoint.owners import assign_owners, rows_of
from ingot.parallel.tensor_shards import Rectangle, TensorShard, flat_range_rectangles

SHAPES = {"a": (300, 70), "b": (129,), "c": (), "d": (64, 8, 12)}
TABLE = {name: (shape, "float32") for name, shape in SHAPES.items()}


def shards_of(rectangles: dict[str, list[Rectangle]]) -> list[TensorShard]:
    return [
        TensorShard(name, SHAPES[name], rectangle, torch.empty(rectangle.shape, device="meta"))
        for name, listed in rectangles.items()
        for rectangle in listed
    ]


def blocks(shape: tuple, counts: tuple) -> list[Rectangle]:
    """Equal blocks along each dim, the last one smaller, as FSDP2 and tensor parallelism make them."""
    sides = []
    for size, count in zip(shape, counts, strict=True):
        step = -(-size // count)
        sides.append([(at, min(step, size - at)) for at in range(0, size, step)])
    return [Rectangle(tuple(o for o, _ in side), tuple(n for _, n in side)) for side in itertools.product(*sides)]


def fsdp(ranks: int, replicas: int) -> list[list[TensorShard]]:
    """Each tensor sharded along its first dim over ranks / replicas, each part on `replicas` ranks."""
    held = []
    for rank in range(ranks):
        part, rectangles = rank // replicas, {}
        for name, shape in SHAPES.items():
            parts = blocks(shape, (ranks // replicas, *[1] * (len(shape) - 1))) if shape else [Rectangle((), ())]
            if part < len(parts):
                rectangles[name] = [parts[part]] if shape else parts
        held.append(shards_of(rectangles))
    return held


def flat(ranks: int) -> list[list[TensorShard]]:
    """Each tensor's elements divided among the ranks in flat ranges, as ZeRO does."""
    held = []
    for rank in range(ranks):
        rectangles = {}
        for name, shape in SHAPES.items():
            size = math.prod(shape)
            rectangles[name] = flat_range_rectangles(shape, rank * size // ranks, (rank + 1) * size // ranks)
        held.append(shards_of(rectangles))
    return held


LAYOUTS = {
    "one": fsdp(1, 1), "replicas": fsdp(8, 8), "fsdp": fsdp(100, 1), "hsdp": fsdp(140, 2), "flat": flat(7),
    "flat, many": flat(90),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_element_is_written_once_by_a_rank_that_holds_it_and_found_again(layout):
    held = LAYOUTS[layout]
    masks, entries = assign_owners([rows_of(shards, TABLE) for shards in held], TABLE)
    manifest = json.loads(json.dumps(make_manifest(entries, dict.fromkeys(entries, 0), {}, 1, {})))
    written = {
        (shard.name, f"rank-{rank:05d}.safetensors", shard.rectangle)
        for rank, (shards, mask) in enumerate(zip(held, masks, strict=True))
        for shard, mine in zip(shards, mask, strict=True)
        if mine
    }
    for name, shape in SHAPES.items():
        found = list(stored_shards(name, manifest["tensors"][name]))
        assert {(name, piece.file, piece.rectangle) for piece in found} == {w for w in written if w[0] == name}
        count = np.zeros(shape, int)
        for piece in found:
            count[
                tuple(slice(o, o + n) for o, n in zip(piece.rectangle.offset, piece.rectangle.shape, strict=True))
            ] += 1
            assert piece.key == f"{name}@{','.join(map(str, piece.rectangle.offset))}"
        assert (count == 1).all()


@pytest.mark.parametrize("layout", ["fsdp", "hsdp", "flat, many"])
def test_a_part_of_a_tensor_is_found_without_looking_at_the_rest(layout):
    held = LAYOUTS[layout]
    _, entries = assign_owners([rows_of(shards, TABLE) for shards in held], TABLE)
    for rectangle in blocks(SHAPES["a"], (11, 3)):
        all_of_them = [p for p in stored_shards("a", entries["a"]) if p.rectangle.intersect(rectangle) is not None]
        assert list(stored_shards("a", entries["a"], rectangle)) == all_of_them
        assert all_of_them


def test_many_regular_rectangles_become_a_grid_and_few_or_irregular_ones_a_list():
    _, many = assign_owners([rows_of(shards, TABLE) for shards in LAYOUTS["fsdp"]], TABLE)
    _, few = assign_owners([rows_of(shards, TABLE) for shards in fsdp(8, 1)], TABLE)
    _, irregular = assign_owners([rows_of(shards, TABLE) for shards in LAYOUTS["flat, many"]], TABLE)
    assert many["a"]["grid"] == {"sizes": [[[3, 100]], [[70, 1]]], "ranks": [[0, 1, 100]]}
    assert "rectangles" in few["a"]
    assert "rectangles" in irregular["a"]


def test_replicas_are_spread_evenly():
    ranks, tensors = 8, 40
    table = {f"t{n:02d}": ((100 + n, 10), "float32") for n in range(tensors)}
    rows = np.array([[n, 0, 0, 100 + n, 10] for n in range(tensors)], np.int32)
    masks, _ = assign_owners([rows] * ranks, table)
    sizes = np.array([(100 + n) * 10 for n in range(tensors)])
    assert np.stack(masks).sum(axis=0).tolist() == [1] * tensors
    loads = [sizes[mask].sum() for mask in masks]
    assert max(loads) < 1.05 * sizes.sum() / ranks


def test_parts_on_different_numbers_of_ranks_are_written_once():
    whole, half = Rectangle((0,), (129,)), [Rectangle((0,), (64,)), Rectangle((64,), (65,))]
    held = [shards_of({"b": [rectangle], "c": [Rectangle((), ())]}) for rectangle in (half[0], half[1], half[1])]
    table = {name: TABLE[name] for name in ("b", "c")}
    masks, entries = assign_owners([rows_of(shards, table) for shards in held], table)
    assert sum(int(mask.sum()) for mask in masks) == 3
    assert [piece.rectangle for piece in stored_shards("b", entries["b"], whole)] == half


def test_rectangles_with_a_hole_or_an_overlap_are_no_grid():
    offsets, sizes = np.array([[0], [4], [8]]), np.array([[4], [4], [2]])
    ranks = np.arange(3)
    assert Grid.of((10,), offsets, sizes, ranks) is not None
    assert Grid.of((11,), offsets, sizes, ranks) is None
    assert Grid.of((10,), offsets, np.array([[5], [4], [2]]), ranks) is None
    assert Grid.of((10,), offsets[1:], sizes[1:], ranks[1:]) is None
    square = np.array([[0, 0], [0, 5], [5, 0]])
    assert Grid.of((10, 10), square, np.full((3, 2), 5), ranks) is None
