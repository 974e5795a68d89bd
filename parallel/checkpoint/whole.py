"""Whole checkpoints in one process: checking, comparing and making them, some rows of a tensor at a time."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ingot.parallel.catalog import Rectangle, Shard
from ingot.parallel.checkpoint.digest import digest
from ingot.parallel.checkpoint.files import FileDamaged, TensorFile, write
from ingot.parallel.checkpoint.format import (
    PARTIAL,
    CheckpointError,
    file_of,
    key_of,
    listed,
    make_manifest,
    pieces,
    publish,
)
from ingot.parallel.checkpoint.loading import Reading, read_shard

BLOCK = 64 << 20
"""Bytes of a tensor that are in memory at once."""
FILE = 1 << 30
"""Bytes after which a new file is begun, and that are in memory at once when one is written."""


class Opened:
    """A checkpoint whose files are opened as they are needed. A context manager."""

    def __init__(self, path: Path, manifest: dict):
        self.path, self.manifest = path, manifest
        self.files: dict[str, TensorFile] = {}

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files.values():
            file.close()

    def read(self, name: str, box: Rectangle) -> torch.Tensor:
        entry = self.manifest["tensors"][name]
        tensor = torch.empty(box.shape, dtype=getattr(torch, entry["dtype"]))
        read_shard(self.path, entry, Shard(name, tuple(entry["shape"]), box, tensor), self.files, Reading())
        return tensor

    def rows(self, name: str) -> Iterator[Shard]:
        """The whole tensor, in parts of at most about `BLOCK` bytes (a row at least)."""
        entry = self.manifest["tensors"][name]
        shape = tuple(entry["shape"])
        for box in row_blocks(shape, getattr(torch, entry["dtype"]).itemsize):
            yield Shard(name, shape, box, self.read(name, box))


def row_blocks(shape: tuple[int, ...], width: int) -> Iterator[Rectangle]:
    if not shape:
        yield Rectangle((), ())
        return
    step = max(1, BLOCK // max(1, math.prod(shape[1:]) * width))
    for start in range(0, shape[0], step):
        rest = (0,) * (len(shape) - 1)
        yield Rectangle((start, *rest), (min(step, shape[0] - start), *shape[1:]))


def problems(path: Path, manifest: dict, progress: Callable[[int], None] = lambda count: None) -> list[str]:
    """All that is wrong with a checkpoint whose files have the right sizes: elements that are in no file or in two,
    files that are not what the manifest says, other digests.

    Args:
        progress: is told of bytes that were read.
    """
    found = []
    with Opened(path, manifest) as opened:
        for name, entry in manifest["tensors"].items():
            boxes = [piece.rectangle for piece in pieces(name, entry)]
            missing = math.prod(entry["shape"]) - sum(box.numel for box in boxes)
            if missing > 0:
                found.append(f"{name}: {missing} elements are in no file")
            if (pair := _overlap(boxes)) is not None:
                found.append(f"{name}: {pair[0]} and {pair[1]} overlap")
            try:
                value = sum(digest(shard) for shard in _stored(opened, name, entry, progress)) % 2**64
            except (FileDamaged, OSError) as error:
                found.append(f"{name}: {error}")
                continue
            if f"{value:016x}" != entry["digest"]:
                found.append(f"{name}: its digest is {value:016x}, and was {entry['digest']} when it was saved")
    return found


def _stored(opened: Opened, name: str, entry: dict, progress: Callable[[int], None]) -> Iterator[Shard]:
    """What the files hold of a tensor, rectangle by rectangle."""
    shape, dtype = tuple(entry["shape"]), getattr(torch, entry["dtype"])
    for piece in pieces(name, entry):
        file = opened.files.get(piece.file)
        if file is None:
            file = opened.files[piece.file] = TensorFile(opened.path / piece.file)
        for box in row_blocks(piece.rectangle.shape, dtype.itemsize):
            tensor = torch.empty(box.shape, dtype=dtype)
            progress(file.read_into(tensor, piece.key, box))
            offset = tuple(a + b for a, b in zip(piece.rectangle.offset, box.offset, strict=True))
            yield Shard(name, shape, Rectangle(offset, box.shape), tensor)


def _overlap(boxes: list[Rectangle]) -> tuple[Rectangle, Rectangle] | None:
    """Two boxes that have elements in common. Each is compared with those that reach into its first row only."""
    open_boxes: list[Rectangle] = []
    for box in sorted(boxes, key=lambda b: b.offset):
        if box.offset:
            open_boxes = [other for other in open_boxes if other.offset[0] + other.shape[0] > box.offset[0]]
        for other in open_boxes:
            if other.intersect(box) is not None:
                return other, box
        open_boxes.append(box)
    return None


@dataclass(frozen=True)
class Difference:
    """How far apart two tensors are: the largest difference of an element, and the norm of all of them beside that of
    the first tensor."""

    name: str
    largest: float
    relative: float


def differences(one: Opened, other: Opened, names: Iterable[str]) -> Iterator[Difference]:
    """Of the tensors `names`, which both have in the same shape, those whose digests differ."""
    for name in names:
        if one.manifest["tensors"][name]["digest"] == other.manifest["tensors"][name]["digest"]:
            continue
        largest = apart = norm = 0.0
        for shard in one.rows(name):
            mine, theirs = shard.tensor.double(), other.read(name, shard.rectangle).double()
            largest = max(largest, (mine - theirs).abs().max().item())
            apart += (mine - theirs).square().sum().item()
            norm += mine.square().sum().item()
        yield Difference(name, largest, math.sqrt(apart / norm) if norm else math.inf)


def make(output: Path, shards: Iterable[Shard], *, step: int, about: dict) -> None:
    """Writes a checkpoint from parts as they come, each of which is in memory until about `FILE` bytes are there. The
    folder appears when it is whole.

    Raises:
        CheckpointError: it exists already, or cannot be written.
    """
    if output.exists():
        raise CheckpointError(f"{output} exists; name a new folder")
    temporary = output.with_name(f".{output.name}{PARTIAL}")
    shutil.rmtree(temporary, ignore_errors=True)
    entries: dict[str, dict] = {}
    digests: dict[str, int] = {}
    files: dict[str, int] = {}
    waiting: list[Shard] = []

    def write_waiting() -> None:
        file = file_of(len(files))
        files[file] = write(temporary / file, {key_of(s.name, s.rectangle): s.tensor for s in waiting})
        for shard in waiting:
            dtype = str(shard.tensor.dtype).removeprefix("torch.")
            empty = {"shape": list(shard.global_shape), "dtype": dtype, "rectangles": []}
            entries.setdefault(shard.name, empty)["rectangles"] += listed(
                shard.name, [(len(files) - 1, shard.rectangle)]
            )
            digests[shard.name] = digests.get(shard.name, 0) + digest(shard)
        waiting.clear()

    try:
        temporary.mkdir(parents=True)
        for shard in shards:
            waiting.append(shard)
            if sum(each.tensor.numel() * each.tensor.element_size() for each in waiting) >= FILE:
                write_waiting()
        if waiting:
            write_waiting()
        publish(temporary, output, make_manifest(entries, digests, files, step, about))
    except OSError as error:
        raise CheckpointError(f"cannot write {output}: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
