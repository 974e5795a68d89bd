"""Checkpoints on disk: a folder for each, and in it the manifest, which says what is where.

    CHECKPOINTS/LATEST                              name of the newest one, for people; Ingot does not read it
    CHECKPOINTS/step-00000200/manifest.json         step, files with sizes, tensors: shape, dtype, digest, ...
    CHECKPOINTS/step-00000200/rank-00000.safetensors ...

Files and manifest are written to a temporary folder and synced. Then the folder gets its final name. No pickle is used,
and a finished folder is never written to again.
"""

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from ingot.parallel.checkpoint.grid import Grid
from ingot.parallel.tensor_shards import Rectangle

FORMAT, VERSION = "ingot-checkpoint", 4
READABLE = (2, 3, 4)
"""Versions that can be read. Version 2 has no grids; from version 4 on there are checksums of manifest and files."""
PARTIAL = ".partial"
MOST_DIMS, LARGEST = 8, 2**62
"""Of a tensor, and of a number of elements or bytes."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model."""


class CheckpointMismatch(CheckpointError):
    """An intact checkpoint of another model. An older checkpoint of the same run would not help."""


def step_name(step: int) -> str:
    """The name of the folder of a step."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint's folder. None: the folder has another name."""
    number = path.name.removeprefix("step-")
    return int(number) if number != path.name and number.isascii() and number.isdigit() and len(number) < 20 else None


def is_regular(path: Path) -> bool:
    """Whether a path is a regular file, and no link: links could lead out of the folder."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def is_count(value: object) -> bool:
    """Whether a value of a JSON file is a number of elements or bytes."""
    return type(value) is int and 0 <= value <= LARGEST


def is_counts(value: object, number: int | None = None) -> TypeGuard[list[int]]:
    """Whether a value of a JSON file is a list of such numbers, of `number` if that is given: a shape or an offset."""
    if not isinstance(value, list) or len(value) > MOST_DIMS or number not in (None, len(value)):
        return False
    return all(is_count(each) for each in value)


@dataclass(frozen=True)
class StoredShard:
    """A rectangle of a tensor on disk: in this file, under this key."""

    file: str
    key: str
    rectangle: Rectangle


def stored_shards(name: str, entry: dict, within: Rectangle | None = None) -> Iterator[StoredShard]:
    """Where the parts of a tensor are on disk.

    Args:
        entry: of the tensor in the manifest.
        within: only shards that have elements in common with this rectangle.
    """
    if "grid" in entry:
        for rank, rectangle in Grid.from_json(entry["grid"]).blocks(within):
            yield StoredShard(file_of(rank), key_of(name, rectangle), rectangle)
        return
    for item in entry["rectangles"]:
        rectangle = Rectangle(tuple(item["offset"]), tuple(item["shape"]))
        if within is None or rectangle.intersect(within) is not None:
            yield StoredShard(item["file"], item["key"], rectangle)


def file_of(rank: int) -> str:
    """The name of the file that a rank writes."""
    return f"rank-{rank:05d}.safetensors"


def key_of(name: str, rectangle: Rectangle) -> str:
    """The key of a rectangle of a tensor in a file."""
    return name + "@" + ",".join(map(str, rectangle.offset))


def rectangle_entries(name: str, rectangles: Iterable[tuple[int, Rectangle]]) -> list[dict]:
    """The list of a tensor's rectangles in a manifest.

    Args:
        rectangles: each with the rank that writes it.
    """
    return [
        {
            "file": file_of(rank),
            "key": key_of(name, rectangle),
            "offset": list(rectangle.offset),
            "shape": list(rectangle.shape),
        }
        for rank, rectangle in rectangles
    ]
