"""Checkpoints on disk: a folder for each, and in it the manifest, which says what is where.

    CHECKPOINTS/LATEST                              name of the newest one, for people; Ingot does not read it
    CHECKPOINTS/step-00000200/manifest.json         step, files with sizes, tensors: shape, dtype, digest, ...
    CHECKPOINTS/step-00000200/rank-00000.safetensors ...

Files and manifest are written to a temporary folder and synced. Then the folder gets its final name. No pickle is used,
and a finished folder is never written to again.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ingot.durable_files import sync_folder, write_atomically
from ingot.parallel.checkpoint.grid import Grid
from ingot.parallel.tensor_shards import Rectangle

FORMAT, VERSION = "ingot-checkpoint", 3
READABLE = (2, 3)
"""Versions that can be read. Version 2 has no grids."""
PARTIAL = ".partial"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model."""


class CheckpointMismatch(CheckpointError):
    """An intact checkpoint of another model. An older checkpoint of the same run would not help."""


def step_name(step: int) -> str:
    """The name of the folder of a step."""
    return f"step-{step:08d}"


def read_manifest(path: Path) -> dict:
    """The manifest of a checkpoint folder. It also checks that all files are there with the right sizes.

    Raises:
        CheckpointError: there is no manifest, it cannot be read, or a file is missing or has another size.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is no checkpoint: it has no manifest.json") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: manifest.json cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") not in READABLE:
        raise CheckpointError(f"checkpoint {path} has another format than {FORMAT} version {VERSION}")
    for name, size in manifest["files"].items():
        file = path / name
        found = file.stat().st_size if file.exists() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise CheckpointError(f"checkpoint {path} is damaged: {name} {state}")
    return manifest


def committed(folder: Path) -> list[Path]:
    """The folders of checkpoints in a run's folder `checkpoints`, newest first. They are not checked."""
    return sorted((p for p in folder.glob("step-*") if p.name[5:].isdigit()), reverse=True) if folder.is_dir() else []


def resolve(path: Path) -> Path:
    """The checkpoint folder for a user's path: the path itself, or the newest intact checkpoint of a run.

    Raises:
        CheckpointError: there is none.
    """
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


def make_manifest(
    entries: dict[str, dict], digests: dict[str, int], files: dict[str, int], step: int, metadata: dict
) -> dict:
    """The manifest of a checkpoint.

    Args:
        entries: for each tensor its shape, dtype, and rectangles or grid.
        digests: for each tensor its digest, or a sum that equals it modulo 2**64.
        files: names and sizes in bytes.
        metadata: further keys.
    """
    head = {"format": FORMAT, "version": VERSION, "step": step}
    tensors = {
        name: {"shape": entry["shape"], "dtype": entry["dtype"], "digest": f"{digests[name] % 2**64:016x}", **entry}
        for name, entry in sorted(entries.items())
    }
    return {**head, **metadata, "files": files, "tensors": tensors}


def publish(temporary: Path, final: Path, manifest: dict) -> None:
    """Writes the manifest and gives the folder its final name.

    The order is such that a crash at any point leaves a whole checkpoint or none.
    """
    write_manifest(temporary, manifest)
    sync_folder(temporary)
    if final.exists():  # a damaged checkpoint, whose step this run has now reached again: kept under another name
        final.rename(_free_name(final))
    temporary.rename(final)
    sync_folder(final.parent)


def commit(temporary: Path, final: Path, manifest: dict, keep: int) -> None:
    """Publishes the newest checkpoint of a run, writes its name to LATEST, and removes old checkpoints.

    Args:
        keep: how many checkpoints stay; 0 keeps all.
    """
    publish(temporary, final, manifest)
    write_atomically(final.parent / "LATEST", final.name + "\n")
    _remove_old(final.parent, keep)


def remove_leftovers(folder: Path, mine: Path | None = None) -> None:
    """Removes what interrupted saves and removals have left, except `mine`."""
    for pattern in (f".step-*{PARTIAL}", ".step-*.dropped"):
        for left in folder.glob(pattern):
            if left != mine:
                shutil.rmtree(left, ignore_errors=True)


def _remove_old(folder: Path, keep: int) -> None:
    for old in committed(folder)[keep:] if keep else []:
        # Renamed first: a folder that is half removed must not look like a damaged checkpoint.
        renamed = folder / f".{old.name}.dropped"
        old.rename(renamed)
        shutil.rmtree(renamed, ignore_errors=True)


def _free_name(path: Path) -> Path:
    number = 1
    while (other := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    print(f"{path} is damaged and was kept as {other.name}", file=sys.stderr)
    return other


def write_manifest(folder: Path, manifest: dict) -> None:
    """Writes manifest.json, with one line for each key and each tensor, so that people can read and compare it."""
    tensors = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in manifest["tensors"].items())
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in manifest.items() if key != "tensors"]
    text = "{\n " + ",\n ".join([*lines, '"tensors": {\n  ' + tensors + "\n }"]) + "\n}\n"
    write_atomically(folder / "manifest.json", text)
