"""Loading a checkpoint into any layout: each rank reads the bytes that it needs, and all together check the digests."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ingot.parallel.catalog import Rectangle, Shard
from ingot.parallel.checkpoint.digest import digest
from ingot.parallel.checkpoint.files import FileDamaged, TensorFile
from ingot.parallel.checkpoint.format import CheckpointError, CheckpointMismatch, pieces, read_manifest
from ingot.parallel.checkpoint.owners import agree, union
from ingot.parallel.mesh import sum_over_ranks


@dataclass
class Reading:
    """Bytes that this rank has asked of files, and the bytes of its part of the state."""

    read: int = 0
    needed: int = 0


def load(path: Path, shards: list[Shard], *, only: str = "", reading: Reading | None = None) -> dict:
    """Reads into `shards`, this rank's part of the state, the bytes that it needs. Each rank must call it.

    Args:
        only: a beginning of names, such as `model/`: the tensors under it are loaded, and others, here and there, are
            neither wanted nor touched.
        reading: is told what was read.

    Returns:
        The manifest.

    Raises:
        CheckpointError: on each rank alike: names or shapes differ (all of them are named), a file is missing or short,
            or the digest of a tensor is not the one that was saved. The shards may then hold anything.
    """
    manifest = read_manifest(path)
    shards = [shard for shard in shards if shard.name.startswith(only)]
    entries = {name: entry for name, entry in manifest["tensors"].items() if name.startswith(only)}
    _check_names(path, entries, shards)
    reading = Reading() if reading is None else reading
    problem, files = "", {}
    try:
        for shard in shards:
            read_shard(path, entries[shard.name], shard, files, reading)
    except (OSError, CheckpointError, FileDamaged) as error:
        problem = f"{type(error).__name__}: {error}"
    finally:
        for file in files.values():
            file.close()
    if sum_over_ranks([bool(problem)])[0]:
        raise CheckpointError(f"checkpoint {path} cannot be read{': ' + problem if problem else ' by another rank'}")
    _check_digests(path, entries, shards)
    return manifest


def read_tensor(path: Path, manifest: dict, name: str) -> torch.Tensor:
    """One whole logical tensor, for tools that run in one process.

    Raises:
        CheckpointError: a part of it is in no file, or a file is damaged.
    """
    entry = manifest["tensors"][name]
    shape = tuple(entry["shape"])
    tensor = torch.empty(shape, dtype=getattr(torch, entry["dtype"]))
    files: dict[str, TensorFile] = {}
    try:
        read_shard(path, entry, Shard(name, shape, Rectangle((0,) * len(shape), shape), tensor), files, Reading())
    except FileDamaged as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from None
    finally:
        for file in files.values():
            file.close()
    return tensor


def read_shard(path: Path, entry: dict, shard: Shard, files: dict[str, TensorFile], reading: Reading) -> None:
    """Fills a rectangle of a tensor from the files of the checkpoint at `path`.

    Args:
        entry: the tensor's in the manifest.
        files: those that are open; what is opened is added.

    Raises:
        CheckpointError: some of its elements are in no file.
        FileDamaged, OSError: a file is not what the manifest says, or not there.
    """
    missing = shard.rectangle.numel
    reading.needed += missing * shard.tensor.element_size()
    for piece in pieces(shard.name, entry, shard.rectangle):
        box, common = piece.rectangle, piece.rectangle.intersect(shard.rectangle)
        if piece.file not in files:
            files[piece.file] = TensorFile(path / piece.file)
        target = shard.tensor[common.slices_within(shard.rectangle)]
        inner = Rectangle(tuple(a - b for a, b in zip(common.offset, box.offset, strict=True)), common.shape)
        reading.read += files[piece.file].read_into(target, piece.key, inner)
        missing -= common.numel
    if missing:
        raise CheckpointError(f"{missing} elements of {shard.name} are in no file")


def _check_names(path: Path, entries: dict[str, dict], shards: list[Shard]) -> None:
    """Names must be the same both ways over all ranks together, and shapes equal."""
    wanted = union({shard.name: tuple(shard.global_shape) for shard in shards})
    saved = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    problems = [f"{n} is missing" for n in sorted(wanted.keys() - saved.keys())]
    problems += [f"{n} is not in this model" for n in sorted(saved.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & saved.keys()):
        if wanted[name] != saved[name]:
            problems.append(f"{name} is {list(saved[name])} there and {list(wanted[name])} here")
    if problems:
        raise CheckpointMismatch(f"checkpoint {path} was made by another model: {_some(problems)}")


def _check_digests(path: Path, entries: dict[str, dict], shards: list[Shard]) -> None:
    digests = dict.fromkeys(entries, 0)
    for shard in agree(shards).mine:
        digests[shard.name] += digest(shard)
    sums = sum_over_ranks([digests[name] for name in entries])
    wrong = [n for n, value in zip(entries, sums, strict=True) if f"{value:016x}" != entries[n]["digest"]]
    if wrong:
        raise CheckpointError(f"checkpoint {path} is damaged: {len(wrong)} tensors have another digest: {_some(wrong)}")


def _some(items: list[str], most: int = 5) -> str:
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")
