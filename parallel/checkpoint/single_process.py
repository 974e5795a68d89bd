"""Checking, comparing and writing whole checkpoints in one process, some rows of a tensor at a time."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ingot.parallel.checkpoint.digest import digest
from ingot.parallel.checkpoint.files import FileDamaged, TensorFile, write
from ingot.parallel.checkpoint.format import (
    PARTIAL,
    CheckpointError,
    file_of,
    key_of,
    rectangle_entries,
    stored_shards,
)
from ingot.parallel.checkpoint.loading import ReadCounts, read_shard
from ingot.parallel.checkpoint.manifest import make_manifest, verify_files
from ingot.parallel.checkpoint.run_folder import publish
from ingot.parallel.tensor_shards import Rectangle, TensorShard

BLOCK = 64 << 20
"""Bytes of a tensor that are in memory at the same time."""
FILE = 1 << 30
"""Bytes of a file. When a file is written, so many bytes are in memory."""


class OpenCheckpoint:
    """A checkpoint whose files are opened when they are needed. A context manager, which closes them."""

    def __init__(self, path: Path, manifest: dict):
        self.path, self.manifest = path, manifest
        self.files: dict[str, TensorFile] = {}

    def __enter__(self) -> "OpenCheckpoint":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files.values():
            file.close()

    def read(self, name: str, rectangle: Rectangle) -> torch.Tensor:
        """A rectangle of a tensor, of its stored type."""
        entry = self.manifest["tensors"][name]
        tensor = torch.empty(rectangle.shape, dtype=getattr(torch, entry["dtype"]))
        read_shard(
            self.path, entry, TensorShard(name, tuple(entry["shape"]), rectangle, tensor), self.files, ReadCounts()
        )
        return tensor

    def rows(self, name: str) -> Iterator[TensorShard]:
        """The whole tensor in parts of about `BLOCK` bytes at most, but of at least one row."""
        entry = self.manifest["tensors"][name]
        shape = tuple(entry["shape"])
        for rectangle in row_blocks(shape, getattr(torch, entry["dtype"]).itemsize):
            yield TensorShard(name, shape, rectangle, self.read(name, rectangle))


def row_blocks(shape: tuple[int, ...], width: int) -> Iterator[Rectangle]:
    """Divides a tensor with `width` bytes per element along its first dim, into blocks of about `BLOCK` bytes."""
    if not shape:
        yield Rectangle((), ())
        return
    step = max(1, BLOCK // max(1, math.prod(shape[1:]) * width))
    for start in range(0, shape[0], step):
        rest = (0,) * (len(shape) - 1)
        yield Rectangle((start, *rest), (min(step, shape[0] - start), *shape[1:]))


def find_problems(path: Path, manifest: dict, progress: Callable[[int], object] = lambda count: None) -> list[str]:
    """What is wrong with a checkpoint whose files have the right sizes, a line each.

    These are files that are not what was written or do not fit the manifest, and wrong digests. (That the parts fill
    each tensor is checked when a manifest is read.)

    Args:
        progress: a function that is called with the number of bytes after each read.
    """
    found = verify_files(path, manifest, progress)
    with OpenCheckpoint(path, manifest) as opened:
        for name, entry in manifest["tensors"].items():
            try:
                value = sum(digest(shard) for shard in _stored(opened, name, entry, progress)) % 2**64
            except (FileDamaged, OSError) as error:
                found.append(f"{name}: {error}")
                continue
            if f"{value:016x}" != entry["digest"]:
                found.append(f"{name}: its digest is {value:016x}, and was {entry['digest']} when it was saved")
    return found


def _stored(opened: OpenCheckpoint, name: str, entry: dict, progress: Callable[[int], object]) -> Iterator[TensorShard]:
    """The parts of a tensor in the files, one after the other."""
    shape, dtype = tuple(entry["shape"]), getattr(torch, entry["dtype"])
    for piece in stored_shards(name, entry):
        file = opened.files.get(piece.file)
        if file is None:
            file = opened.files[piece.file] = TensorFile(opened.path / piece.file)
        for rectangle in row_blocks(piece.rectangle.shape, dtype.itemsize):
            tensor = torch.empty(rectangle.shape, dtype=dtype)
            progress(file.read_into(tensor, piece.key, rectangle))
            offset = tuple(a + b for a, b in zip(piece.rectangle.offset, rectangle.offset, strict=True))
            yield TensorShard(name, shape, Rectangle(offset, rectangle.shape), tensor)


@dataclass(frozen=True)
class Difference:
    """The difference of two tensors: its largest element, and its norm divided by that of the first tensor."""

    name: str
    largest: float
    relative: float


def differences(one: OpenCheckpoint, other: OpenCheckpoint, names: Iterable[str]) -> Iterator[Difference]:
    """The tensors whose digests differ, among `names`, which both checkpoints have in the same shapes."""
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


def write_checkpoint(output: Path, shards: Iterable[TensorShard], *, step: int, metadata: dict) -> None:
    """Writes a checkpoint from shards, a file for about each `FILE` bytes. The folder appears when it is complete.

    Raises:
        CheckpointError: the folder exists already, or cannot be written.
    """
    if output.exists():
        raise CheckpointError(f"{output} exists; give the name of a new folder")
    temporary = output.with_name(f".{output.name}{PARTIAL}")
    shutil.rmtree(temporary, ignore_errors=True)
    entries: dict[str, dict] = {}
    digests: dict[str, int] = {}
    files: dict[str, dict] = {}
    waiting: list[TensorShard] = []

    def write_waiting() -> None:
        file = file_of(len(files))
        files[file] = write(temporary / file, {key_of(s.name, s.rectangle): s.tensor for s in waiting})
        for shard in waiting:
            dtype = str(shard.tensor.dtype).removeprefix("torch.")
            empty = {"shape": list(shard.global_shape), "dtype": dtype, "rectangles": []}
            entries.setdefault(shard.name, empty)["rectangles"] += rectangle_entries(
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
        publish(temporary, output, make_manifest(entries, digests, files, step, metadata))
    except OSError as error:
        raise CheckpointError(f"cannot write {output}: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
