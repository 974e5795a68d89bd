"""Checkpoints on disk: folders that exist once they are whole, and the manifest that says what is where.

    CHECKPOINTS/LATEST                              name of the newest one: a hint for people, never trusted
    CHECKPOINTS/step-00000200/manifest.json         step, files with sizes, tensors: shape, dtype, digest, ...
    CHECKPOINTS/step-00000200/rank-00000.safetensors ...

Files and manifest are written and synced in a temporary folder first, which then gets its final name. Nothing here is
pickled, and a folder is never written into twice.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ingot.durable_files import sync_folder, write_atomically
from ingot.parallel.catalog import Rectangle
from ingot.parallel.checkpoint.grid import Grid

FORMAT, VERSION = "ingot-checkpoint", 3
READABLE = (2, 3)
"""Versions; 2 has no grids."""
PARTIAL = ".partial"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model."""


class CheckpointMismatch(CheckpointError):
    """A sound checkpoint of another model: going back to an older one would not help."""


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def read_manifest(path: Path) -> dict:
    """The manifest of a checkpoint folder, after a look at whether its files are there and whole."""
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


@dataclass(frozen=True)
class Piece:
    """A rectangle of a tensor, and the file and key under which it lies."""

    file: str
    key: str
    rectangle: Rectangle


def pieces(name: str, entry: dict, within: Rectangle | None = None) -> Iterator[Piece]:
    """Where a tensor lies, by its entry in a manifest.

    Args:
        within: only pieces that have elements in common with it.
    """
    if "grid" in entry:
        for rank, box in Grid.from_json(entry["grid"]).blocks(within):
            yield Piece(file_of(rank), key_of(name, box), box)
        return
    for item in entry["rectangles"]:
        box = Rectangle(tuple(item["offset"]), tuple(item["shape"]))
        if within is None or box.intersect(within) is not None:
            yield Piece(item["file"], item["key"], box)


def file_of(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def key_of(name: str, box: Rectangle) -> str:
    """The name of a rectangle of a tensor in a file."""
    return name + "@" + ",".join(map(str, box.offset))


def listed(name: str, boxes: Iterable[tuple[int, Rectangle]]) -> list[dict]:
    """The rectangles of a tensor, each with the rank whose file has it, as a manifest lists them."""
    return [
        {"file": file_of(rank), "key": key_of(name, box), "offset": list(box.offset), "shape": list(box.shape)}
        for rank, box in boxes
    ]


def make_manifest(entries: dict[str, dict], digests: dict[str, int], files: dict[str, int], step: int, about: dict):
    """
    Args:
        entries: of each tensor shape, dtype, and rectangles or grid.
        digests: of each tensor, or a sum that is one modulo 2**64.
        files: names and bytes.
    """
    head = {"format": FORMAT, "version": VERSION, "step": step}
    tensors = {
        name: {"shape": entry["shape"], "dtype": entry["dtype"], "digest": f"{digests[name] % 2**64:016x}", **entry}
        for name, entry in sorted(entries.items())
    }
    return {**head, **about, "files": files, "tensors": tensors}


def publish(temporary: Path, final: Path, manifest: dict) -> None:
    """Manifest and names, in the order in which a crash at any point leaves a whole checkpoint or none."""
    write_manifest(temporary, manifest)
    sync_folder(temporary)
    if final.exists():  # a damaged one that this run has passed again: left for inspection under another name
        final.rename(_free_name(final))
    temporary.rename(final)
    sync_folder(final.parent)


def commit(temporary: Path, final: Path, manifest: dict, keep: int) -> None:
    """Publishes a run's newest checkpoint, names it in LATEST, and drops old ones."""
    publish(temporary, final, manifest)
    write_atomically(final.parent / "LATEST", final.name + "\n")
    _drop_old(final.parent, keep)


def drop_leftovers(folder: Path, mine: Path | None = None) -> None:
    """Removes what saves and removals that were cut short have left; not `mine`."""
    for pattern in (f".step-*{PARTIAL}", ".step-*.dropped"):
        for left in folder.glob(pattern):
            if left != mine:
                shutil.rmtree(left, ignore_errors=True)


def _drop_old(folder: Path, keep: int) -> None:
    """Leaves the `keep` newest; 0 leaves all."""
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


def write_manifest(folder: Path, manifest: dict) -> None:
    """JSON with one line for each key and each tensor, so that people can read, search and compare it."""
    tensors = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in manifest["tensors"].items())
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in manifest.items() if key != "tensors"]
    text = "{\n " + ",\n ".join([*lines, '"tensors": {\n  ' + tensors + "\n }"]) + "\n}\n"
    write_atomically(folder / "manifest.json", text)
