"""Checkpoints: safetensors files and one manifest that says which rectangle of which tensor is where.

    CHECKPOINTS/LATEST                              name of the newest one: a hint for people, never trusted
    CHECKPOINTS/step-00000200/manifest.json         step, files with sizes, tensors: shape, dtype, digest, ...
    CHECKPOINTS/step-00000200/rank-00000.safetensors ...

A checkpoint exists once its folder has its final name: files and manifest are written and synced in a temporary
folder first. Nothing here is pickled, and a folder is never written into twice.
"""

import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from parallel.catalog import Rectangle, Shard
from parallel.digest import digest
from parallel.mesh import sum_over_ranks

FORMAT, VERSION = "ingot-checkpoint", 1


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model."""


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def save(folder: Path, shards: list[Shard], *, step: int, about: dict, keep: int) -> Path:
    """Writes the state of all ranks as one checkpoint and then drops old ones. Each rank must call it.

    Args:
        folder: the run's `checkpoints` folder.
        shards: this rank's part of the state. A part that several ranks hold is written by one of them.
        step: optimizer steps done.
        about: what else the manifest shall say (cursor, configuration, layout): plain JSON.
        keep: how many checkpoints stay, the new one included; 0 keeps all.

    Raises:
        CheckpointError: on each rank alike, when one of them cannot write. Nothing of this checkpoint is left then, and
            older ones are as they were.
    """
    final, temporary = folder / step_name(step), folder / f".{step_name(step)}.partial"
    main = dist.get_rank() == 0
    part: dict = {}
    with _shared_failure(folder, temporary):
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    mine = _owned(shards)
    with _shared_failure(folder, temporary):
        part = _write_part(temporary, mine)
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    with _shared_failure(folder, temporary):
        if main:
            _commit(temporary, final, _manifest(parts, step, about))
            _drop_old(folder, keep)
    return final


@contextmanager
def _shared_failure(folder: Path, temporary: Path) -> Iterator[None]:
    """Runs a part of saving on each rank; if it fails on one, every rank raises, and nothing unfinished stays."""
    problem = ""
    try:
        yield
    except (OSError, SafetensorError) as error:
        problem = str(error)
    if sum_over_ranks([bool(problem)])[0]:
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"cannot write a checkpoint into {folder}: {problem or 'another rank has failed'}")


def _write_part(temporary: Path, mine: list[Shard]) -> dict:
    """Writes what this rank answers for, and describes it for the manifest."""
    file = f"rank-{dist.get_rank():05d}.safetensors"
    if not mine:
        return {"file": None, "bytes": 0, "tensors": []}
    tensors = {_key(shard): shard.tensor.detach().cpu().contiguous() for shard in mine}
    save_file(tensors, temporary / file, metadata={"format": "pt"})
    _sync(temporary / file)
    return {"file": file, "bytes": (temporary / file).stat().st_size, "tensors": [_describe(s, file) for s in mine]}


def _commit(temporary: Path, final: Path, manifest: dict) -> None:
    """Manifest, names, LATEST, in the order in which a crash at any point leaves a whole checkpoint or none."""
    _write_manifest(temporary / "manifest.json", manifest)
    _sync(temporary)
    if final.exists():  # a damaged one that this run has passed again: left for inspection under another name
        final.rename(_free_name(final))
    temporary.rename(final)
    _sync(final.parent)
    _write_text(final.parent / "LATEST", final.name + "\n")


def load(path: Path, shards: list[Shard]) -> dict:
    """Reads into `shards`, this rank's part of the state, the bytes that it needs. Each rank must call it.

    Returns:
        The manifest.

    Raises:
        CheckpointError: on each rank alike: names or shapes differ (all of them are named), a file is missing or short,
            or the digest of a tensor is not the one that was saved. The shards may then hold anything.
    """
    manifest = read_manifest(path)
    _check_names(path, manifest, shards)
    problem = ""
    try:
        files: dict[str, object] = {}
        for shard in shards:
            _read_into(path, manifest["tensors"][shard.name], shard, files)
    except (OSError, SafetensorError, CheckpointError) as error:
        problem = f"{type(error).__name__}: {error}"
    if sum_over_ranks([bool(problem)])[0]:
        raise CheckpointError(f"checkpoint {path} cannot be read{': ' + problem if problem else ' by another rank'}")

    names = list(manifest["tensors"])
    digests = dict.fromkeys(names, 0)
    for shard in _owned(shards):
        digests[shard.name] += digest(shard)
    sums = sum_over_ranks([digests[name] for name in names])
    wrong = [n for n, value in zip(names, sums, strict=True) if f"{value:016x}" != manifest["tensors"][n]["digest"]]
    if wrong:
        raise CheckpointError(f"checkpoint {path} is damaged: {len(wrong)} tensors have another digest: {_some(wrong)}")
    return manifest


def read_tensor(path: Path, manifest: dict, name: str) -> torch.Tensor:
    """One whole logical tensor, for tools that run in one process."""
    entry = manifest["tensors"][name]
    shape = tuple(entry["shape"])
    tensor = torch.empty(shape, dtype=getattr(torch, entry["dtype"]))
    _read_into(path, entry, Shard(name, shape, Rectangle((0,) * len(shape), shape), tensor), {})
    return tensor


def read_manifest(path: Path) -> dict:
    """The manifest of a checkpoint folder, after a look at whether its files are there and whole."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is no checkpoint: it has no manifest.json") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: manifest.json cannot be read: {error}") from None
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(f"checkpoint {path} has another format than {FORMAT} version {VERSION}")
    for name, size in manifest["files"].items():
        file = path / name
        found = file.stat().st_size if file.exists() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise CheckpointError(f"checkpoint {path} is damaged: {name} {state}")
    return manifest


def committed(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first. A name alone says nothing about what is inside."""
    return sorted((p for p in folder.glob("step-*") if p.name[5:].isdigit()), reverse=True) if folder.is_dir() else []


def resolve(path: Path) -> Path:
    """The checkpoint that a path means: a checkpoint folder itself, or the newest one of a run that is whole."""
    if (path / "manifest.json").exists():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    errors = []
    for candidate in committed(folder):
        try:
            read_manifest(candidate)
            return candidate
        except CheckpointError as error:
            errors.append(str(error))
    raise CheckpointError(
        "; ".join(errors) or f"{path} holds no checkpoint: neither manifest.json nor checkpoints/step-*"
    )


def _owned(shards: list[Shard]) -> list[Shard]:
    """Those of my shards that I answer for. Replicas are shared out evenly, by bytes, the same way on each rank."""
    keys = [(shard.key, shard.tensor.numel() * shard.tensor.element_size()) for shard in shards]
    everywhere: list = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, keys)
    holders, sizes = defaultdict(list), {}
    for rank, listed in enumerate(everywhere):
        for key, size in listed:
            holders[key].append(rank)
            sizes[key] = size
    load_of, owner = [0] * len(everywhere), {}
    for key in sorted(holders, key=lambda k: (len(holders[k]), -sizes[k], k)):
        owner[key] = min(holders[key], key=lambda r: (load_of[r], r))
        load_of[owner[key]] += sizes[key]
    return [shard for shard in shards if owner[shard.key] == dist.get_rank()]


def _key(shard: Shard) -> str:
    return shard.name + "@" + ",".join(map(str, shard.rectangle.offset))


def _describe(shard: Shard, file: str) -> dict:
    return {
        "name": shard.name,
        "shape": list(shard.global_shape),
        "dtype": str(shard.tensor.dtype).removeprefix("torch."),
        "digest": digest(shard),
        "rectangle": {
            "file": file,
            "key": _key(shard),
            "offset": list(shard.rectangle.offset),
            "shape": list(shard.rectangle.shape),
        },
    }


def _manifest(parts: list[dict], step: int, about: dict) -> dict:
    tensors: dict[str, dict] = {}
    for part in parts:
        for item in part["tensors"]:
            empty = {"shape": item["shape"], "dtype": item["dtype"], "digest": 0, "rectangles": []}
            entry = tensors.setdefault(item["name"], empty)
            entry["digest"] += item["digest"]
            entry["rectangles"].append(item["rectangle"])
    for entry in tensors.values():
        entry["digest"] = f"{entry['digest'] % 2**64:016x}"
    files = {part["file"]: part["bytes"] for part in parts if part["file"]}
    return {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        **about,
        "files": files,
        "tensors": dict(sorted(tensors.items())),
    }


def _check_names(path: Path, manifest: dict, shards: list[Shard]) -> None:
    """Names must be the same both ways over all ranks together, and shapes equal."""
    listed: list = [None] * dist.get_world_size()
    dist.all_gather_object(listed, {shard.name: shard.global_shape for shard in shards})
    wanted = {name: shape for part in listed for name, shape in part.items()}
    saved = {name: tuple(entry["shape"]) for name, entry in manifest["tensors"].items()}
    problems = [f"{n} is missing" for n in sorted(wanted.keys() - saved.keys())]
    problems += [f"{n} is not in this model" for n in sorted(saved.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & saved.keys()):
        if wanted[name] != saved[name]:
            problems.append(f"{name} is {list(saved[name])} there and {list(wanted[name])} here")
    if problems:
        raise CheckpointMismatch(f"checkpoint {path} was made by another model: {_some(problems)}")


class CheckpointMismatch(CheckpointError):
    """A sound checkpoint of another model: going back to an older one would not help."""


def _read_into(path: Path, entry: dict, shard: Shard, files: dict) -> None:
    missing = shard.rectangle.numel
    for item in entry["rectangles"]:
        box = Rectangle(tuple(item["offset"]), tuple(item["shape"]))
        common = box.intersect(shard.rectangle)
        if common is None:
            continue
        if item["file"] not in files:
            files[item["file"]] = safe_open(path / item["file"], framework="pt")
        source = files[item["file"]].get_slice(item["key"])
        values = source[common.slices_within(box)] if box.shape else files[item["file"]].get_tensor(item["key"])
        shard.tensor[common.slices_within(shard.rectangle)].copy_(values)
        missing -= common.numel
    if missing:
        raise CheckpointError(f"{missing} elements of {shard.name} are in no file")


def _drop_old(folder: Path, keep: int) -> None:
    for old in committed(folder)[keep:] if keep else []:
        # Renamed first: a half-deleted folder must not look like a damaged checkpoint.
        doomed = folder / f".{old.name}.dropped"
        old.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _free_name(path: Path) -> Path:
    number = 1
    while (other := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    print(f"{path} is damaged and was kept as {other.name}", file=sys.stderr)
    return other


def _some(items: list[str], most: int = 5) -> str:
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")


def _write_manifest(path: Path, manifest: dict) -> None:
    """JSON with one line for each key and each tensor, so that people can read, search and compare it."""
    tensors = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in manifest["tensors"].items())
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in manifest.items() if key != "tensors"]
    _write_text(path, "{\n " + ",\n ".join([*lines, '"tensors": {\n  ' + tensors + "\n }"]) + "\n}\n")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
