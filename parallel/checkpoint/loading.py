"""Loading a checkpoint into any layout: each rank reads the bytes that it needs, and all ranks check the digests."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from ingot.parallel.checkpoint.digest import digest
from ingot.parallel.checkpoint.files import FileDamaged, TensorFile
from ingot.parallel.checkpoint.format import CheckpointError, CheckpointMismatch, stored_shards
from ingot.parallel.checkpoint.manifest import read_manifest
from ingot.parallel.checkpoint.owners import agree_on_owners, union
from ingot.parallel.mesh import sum_over_ranks
from ingot.parallel.tensor_shards import Rectangle, TensorShard

CONVERTED = {torch.float32, torch.bfloat16}
"""Types of optimizer states that are converted into each other while they are loaded."""


@dataclass
class ReadCounts:
    """Bytes that this rank has read from files, and the bytes of its part of the state."""

    read: int = 0
    needed: int = 0


def read_manifest_on_all_ranks(path: Path) -> dict:
    """The manifest of a checkpoint. Each rank must call it.

    Raises:
        CheckpointError: on all ranks, if one of them cannot read it.
    """
    manifest, problem = {}, ""
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        problem = str(error)
    if sum_over_ranks([bool(problem)])[0]:
        raise CheckpointError(_first(problem))
    return manifest


def load(
    path: Path,
    shards: list[TensorShard],
    *,
    prefix: str = "",
    counts: ReadCounts | None = None,
    manifest: dict | None = None,
) -> dict:
    """Reads a checkpoint into `shards`, this rank's part of the state. Each rank must call it.

    Args:
        prefix: only tensors whose names begin so are loaded, such as `model/`. Other shards stay as they are.
        counts: gets the number of bytes that were read.
        manifest: of the checkpoint, if it was read already.

    Returns:
        The manifest.

    Raises:
        CheckpointError: on all ranks: names or shapes differ (the message has all of them), a file is missing or too
            short, or the digest of a tensor is not the one that was saved. The content of the shards is then undefined.
    """
    manifest = read_manifest_on_all_ranks(path) if manifest is None else manifest
    shards = [shard for shard in shards if shard.name.startswith(prefix)]
    entries = {name: entry for name, entry in manifest["tensors"].items() if name.startswith(prefix)}
    _check_names(path, entries, shards)
    counts = ReadCounts() if counts is None else counts
    problem = ""
    files: dict[str, TensorFile] = {}
    digests, mine = dict.fromkeys(entries, 0), {shard.key for shard in agree_on_owners(shards).mine}
    try:
        for shard in shards:
            stored = _as_stored(shard, entries[shard.name])
            read_shard(path, entries[shard.name], stored, files, counts)
            if shard.key in mine:
                digests[shard.name] += digest(stored)
            if stored is not shard:
                shard.tensor.copy_(stored.tensor)
    except (OSError, CheckpointError, FileDamaged) as error:
        problem = f"{type(error).__name__}: {error}"
    finally:
        for file in files.values():
            file.close()
    if sum_over_ranks([bool(problem)])[0]:
        raise CheckpointError(f"checkpoint {path} cannot be read: {_first(problem)}")
    _check_digests(path, entries, digests)
    return manifest


def _as_stored(shard: TensorShard, entry: dict) -> TensorShard:
    """The shard; or one in host memory, for a state that the optimizer keeps in another type than the checkpoint.

    Digests are of what is stored, so it is read as it is and converted afterwards.
    """
    stored = getattr(torch, entry["dtype"])
    if stored == shard.tensor.dtype or not {stored, shard.tensor.dtype} <= CONVERTED or shard.name.startswith("model/"):
        return shard
    return replace(shard, tensor=torch.empty(shard.tensor.shape, dtype=stored))


def read_tensor(path: Path, manifest: dict, name: str) -> torch.Tensor:
    """One whole logical tensor, for commands that run in one process.

    Raises:
        CheckpointError: a part of it is in no file, or a file is damaged.
    """
    entry = manifest["tensors"][name]
    shape = tuple(entry["shape"])
    tensor = torch.empty(shape, dtype=getattr(torch, entry["dtype"]))
    files: dict[str, TensorFile] = {}
    try:
        read_shard(
            path, entry, TensorShard(name, shape, Rectangle((0,) * len(shape), shape), tensor), files, ReadCounts()
        )
    except FileDamaged as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from None
    finally:
        for file in files.values():
            file.close()
    return tensor


def read_shard(path: Path, entry: dict, shard: TensorShard, files: dict[str, TensorFile], counts: ReadCounts) -> None:
    """Fills a rectangle of a tensor from the files of the checkpoint at `path`.

    Args:
        entry: of the tensor in the manifest.
        files: the open files, by name. Files that are opened here are added.
        counts: the bytes that were read are added.

    Raises:
        CheckpointError: some of its elements are in no file.
        FileDamaged, OSError: a file does not fit the manifest, or is missing.
    """
    missing = shard.rectangle.numel
    counts.needed += missing * shard.tensor.element_size()
    for stored in stored_shards(shard.name, entry, shard.rectangle):
        common = stored.rectangle.intersect(shard.rectangle)
        assert common is not None, "stored_shards was asked for shards with common elements"
        if stored.file not in files:
            files[stored.file] = TensorFile(path / stored.file)
        target = shard.tensor[common.slices_within(shard.rectangle)]
        offset = tuple(a - b for a, b in zip(common.offset, stored.rectangle.offset, strict=True))
        counts.read += files[stored.file].read_into(target, stored.key, Rectangle(offset, common.shape))
        missing -= common.numel
    if missing:
        raise CheckpointError(f"{missing} elements of {shard.name} are in no file")


def _check_names(path: Path, entries: dict[str, dict], shards: list[TensorShard]) -> None:
    """All ranks together must have exactly the names in the checkpoint, with equal shapes."""
    wanted = union({shard.name: tuple(shard.global_shape) for shard in shards})
    saved = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    problems = [f"{n} is missing" for n in sorted(wanted.keys() - saved.keys())]
    problems += [f"{n} is not in this model" for n in sorted(saved.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & saved.keys()):
        if wanted[name] != saved[name]:
            problems.append(f"{name} is {list(saved[name])} there and {list(wanted[name])} here")
    if problems:
        raise CheckpointMismatch(f"checkpoint {path} was made by another model: {_some(problems)}")


def _check_digests(path: Path, entries: dict[str, dict], digests: dict[str, int]) -> None:
    """
    Args:
        digests: what this rank adds to the digest of each tensor.
    """
    sums = sum_over_ranks([digests[name] for name in entries])
    wrong = [n for n, value in zip(entries, sums, strict=True) if f"{value:016x}" != entries[n]["digest"]]
    if wrong:
        raise CheckpointError(f"checkpoint {path} is damaged: {len(wrong)} tensors have another digest: {_some(wrong)}")


def _first(problem: str) -> str:
    """The problem of the first rank that has one. Each rank must call it."""
    problems: list = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    rank, text = next((rank, text) for rank, text in enumerate(problems) if text)
    return text if all(problems) else f"{text} (on rank {rank})"


def _some(items: list[str], most: int = 5) -> str:
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")
