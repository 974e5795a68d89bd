"""The manifest of a checkpoint: written with a checksum, and read with a check of all values that loading relies on."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection
from pathlib import Path

from ingot.durable_files import write_atomically
from ingot.parallel.checkpoint.files import NAMES
from ingot.parallel.checkpoint.format import (
    FORMAT,
    READABLE,
    VERSION,
    CheckpointError,
    is_count,
    is_counts,
    is_regular,
    key_of,
    step_of,
)
from ingot.parallel.tensor_shards import Rectangle
from ingot.safe_files import parse_json, read_bytes

MANIFEST = "manifest.json"
MOST_BYTES = 1 << 30
"""Of a manifest. That of 405 billion parameters on 16,384 ranks has a megabyte."""
MOST_PARTS = 1 << 24
"""Of one tensor."""

_WIDTHS = {str(dtype).removeprefix("torch."): dtype.itemsize for dtype in NAMES}
"""Bytes of an element, by the name of its type."""
_FILE = re.compile(r"rank-\d{5,9}\.safetensors")
_DIGEST = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHECKSUM = re.compile(rb' "sha256": "([0-9a-f]{64})"\n}\n')
"""The last two lines of a manifest. The checksum is that of all lines before them."""


def make_manifest(
    entries: dict[str, dict], digests: dict[str, int], files: dict[str, dict], step: int, metadata: dict
) -> dict:
    """The manifest of a checkpoint.

    Args:
        entries: for each tensor its shape, dtype, and rectangles or grid.
        digests: for each tensor its digest, or a sum that equals it modulo 2**64.
        files: for each name its size in bytes and its sha256, as `files.write` returns them.
        metadata: further keys.
    """
    head = {"format": FORMAT, "version": VERSION, "step": step}
    tensors = {
        name: {"shape": entry["shape"], "dtype": entry["dtype"], "digest": f"{digests[name] % 2**64:016x}", **entry}
        for name, entry in sorted(entries.items())
    }
    return {**head, **metadata, "files": files, "tensors": tensors}


def write_manifest(folder: Path, manifest: dict) -> None:
    """Writes manifest.json, with one line for each key and each tensor, so that people can read and compare it.

    The last line is the sha256 of all lines before it: `head -n -2 manifest.json | sha256sum`.
    """
    tensors = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in manifest["tensors"].items())
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in manifest.items() if key != "tensors"]
    text = "{\n " + ",\n ".join([*lines, '"tensors": {\n  ' + tensors + "\n }"]) + ",\n"
    checksum = hashlib.sha256(text.encode()).hexdigest()
    write_atomically(folder / MANIFEST, f'{text} "sha256": "{checksum}"\n}}\n')


def read_manifest(path: Path) -> dict:
    """The manifest of a checkpoint folder, without its checksum. It also checks that all files have the right sizes.

    In the result, `files` has a dict with `bytes`, and with `sha256` from version 4 on, for each name.

    Raises:
        CheckpointError: there is no manifest, it is damaged, or a file is missing or has another size.
    """
    try:
        if (path / MANIFEST).is_symlink():
            raise ValueError(f"{MANIFEST} is a link, and no regular file inside the folder")
        content = read_bytes(path / MANIFEST, max_bytes=MOST_BYTES)
        manifest = parse_json(content, MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path} is no checkpoint: it has no {MANIFEST}") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {MANIFEST} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") not in READABLE:
        raise CheckpointError(f"checkpoint {path} has another format than {FORMAT} version {VERSION}")
    try:
        _check_checksum(content, manifest)
        _check_values(manifest)
        _check_files(path, manifest["files"])
        if (named := step_of(path)) is not None and named != manifest["step"]:
            raise ValueError(f"its name says step {named}, and it holds step {manifest['step']}; rename it")
        for name, entry in manifest["tensors"].items():
            _check_tensor(name, entry, manifest["files"])
        needed = sum(_bytes(entry) for entry in manifest["tensors"].values())
        if needed > (held := sum(file["bytes"] for file in manifest["files"].values())):
            raise ValueError(f"its tensors have {needed:,} bytes, and its files {held:,}")
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from None
    return manifest


def _check_checksum(content: bytes, manifest: dict) -> None:
    if manifest["version"] < 4:
        return
    body, _, rest = content.rpartition(b' "sha256": "')
    last = _CHECKSUM.fullmatch(content, len(body))
    if not rest or last is None or hashlib.sha256(body).hexdigest().encode() != last[1]:
        raise ValueError(f"{MANIFEST} is not what was written: its checksum is another one")
    del manifest["sha256"]


def _check_values(manifest: dict) -> None:
    """Raises ValueError if a value that loading or a run uses has another type or range."""
    for name, is_right in _VALUES.items():
        if name not in manifest:
            if name in ("step", "files", "tensors"):
                raise ValueError(f"{MANIFEST} has no {name}")
        elif not is_right(manifest[name]):
            raise ValueError(f"{MANIFEST} has a wrong {name}: {_short(manifest[name])}")
    files = manifest["files"]
    for name, file in files.items():
        if manifest["version"] < 4:
            file = files[name] = {"bytes": file}
        elif not isinstance(file, dict) or not _is_text(file.get("sha256"), _SHA256):
            raise ValueError(f"{MANIFEST} has no sha256 of {_short(name)}")
        if not _FILE.fullmatch(name) or not is_count(file.get("bytes")):
            raise ValueError(f"{MANIFEST} lists a wrong file: {_short(name)}: {_short(file)}")


def _check_files(path: Path, files: dict[str, dict]) -> None:
    for name, entry in files.items():
        file, size = path / name, entry["bytes"]
        if not is_regular(file):
            kind = "is no regular file inside the folder" if file.is_symlink() or file.exists() else "is missing"
            raise ValueError(f"{name} {kind}")
        if (found := file.stat().st_size) != size:
            raise ValueError(f"{name} has {found} bytes instead of {size}")


def _check_tensor(name: str, entry: object, files: Collection[str]) -> None:
    """Raises ValueError unless the parts of a tensor are inside it and have together as many elements as it has."""
    if not isinstance(entry, dict):
        raise ValueError(f"the entry of {name} is {_short(entry)}")
    shape = entry.get("shape")
    if not is_counts(shape) or not _is_in(entry.get("dtype"), _WIDTHS) or not _is_text(entry.get("digest"), _DIGEST):
        raise ValueError(f"the entry of {name} has a wrong shape, dtype or digest")
    grid, rectangles = entry.get("grid"), entry.get("rectangles")
    if isinstance(grid, dict) and rectangles is None:
        _check_grid(name, grid, shape)
    elif isinstance(rectangles, list) and grid is None:
        _check_rectangles(name, rectangles, shape, files)
    else:
        raise ValueError(f"the entry of {name} has neither rectangles nor a grid")


def _check_rectangles(name: str, rectangles: list, shape: list[int], files: Collection[str]) -> None:
    total, offsets = 0, set()
    for item in rectangles:
        if not isinstance(item, dict):
            raise ValueError(f"{name} has a wrong part: {_short(item)}")
        offset, size = item.get("offset"), item.get("shape")
        if not is_counts(offset, len(shape)) or not is_counts(size, len(shape)):
            raise ValueError(f"{name} has a part with a wrong offset or shape: {_short(item)}")
        if any(o + n > whole for o, n, whole in zip(offset, size, shape, strict=True)):
            raise ValueError(f"{name} has a part outside of it: {_short(item)}")
        if not _is_in(item.get("file"), files) or item.get("key") != key_of(name, Rectangle(tuple(offset), ())):
            raise ValueError(f"{name} has a part with a wrong file or key: {_short(item)}")
        total += math.prod(size)
        offsets.add(tuple(offset))
    if len(offsets) != len(rectangles):
        raise ValueError(f"{name} has two parts at the same place")
    if (missing := math.prod(shape) - total) > 0:
        raise ValueError(f"{missing} elements of {name} are in no file")
    if missing < 0:
        raise ValueError(f"parts of {name} overlap: they have {-missing} elements more than it")


def _check_grid(name: str, grid: dict, shape: list[int]) -> None:
    sizes, ranks = grid.get("sizes"), grid.get("ranks")
    if not isinstance(sizes, list) or len(sizes) != len(shape) or not isinstance(ranks, list) or not ranks:
        raise ValueError(f"{name} has a wrong grid")
    blocks = 1
    for side, whole in zip(sizes, shape, strict=True):
        if not isinstance(side, list) or not all(is_counts(run, 2) and 0 not in run for run in side):
            raise ValueError(f"the grid of {name} has wrong sizes")
        if sum(size * count for size, count in side) != whole:
            raise ValueError(f"the grid of {name} does not fill it")
        blocks *= sum(count for _, count in side)
    if blocks > MOST_PARTS:
        raise ValueError(f"the grid of {name} has {blocks:,} parts; {MOST_PARTS:,} are the most")
    owned = 0
    for run in ranks:
        if not isinstance(run, list) or len(run) != 3 or not all(type(value) is int for value in run):
            raise ValueError(f"the grid of {name} has wrong ranks")
        first, step, count = run
        if count < 1 or not all(0 <= rank < 10**9 for rank in (first, first + step * (count - 1))):
            raise ValueError(f"the grid of {name} has wrong ranks")
        owned += count
    if owned != blocks:
        raise ValueError(f"the grid of {name} has {blocks} parts, and {owned} ranks")


def verify_files(path: Path, manifest: dict, progress: Callable[[int], object] = lambda count: None) -> list[str]:
    """The files whose sha256 is not that in the manifest, a line each. Nothing for checkpoints before version 4.

    Args:
        progress: a function that is called with the number of bytes after each read.
    """
    found = []
    for name, entry in manifest["files"].items():
        if "sha256" not in entry:
            continue
        sha256 = hashlib.sha256()
        with (path / name).open("rb", buffering=0) as file:
            while block := file.read(1 << 22):
                sha256.update(block)
                progress(len(block))
        if sha256.hexdigest() != entry["sha256"]:
            found.append(f"{name}: its sha256 is {sha256.hexdigest()}, and was {entry['sha256']} when it was written")
    return found


def check_frozen(path: Path, manifest: dict, digests: dict[str, str]) -> None:
    """Checks that the frozen parameters are those with which a checkpoint was trained.

    Args:
        digests: of the frozen parameters now, by name.

    Raises:
        ValueError: they are not. Checkpoints of before version 4 do not say it.
    """
    if "frozen" in manifest and (wrong := sorted(n for n, d in digests.items() if manifest["frozen"].get(n) != d)):
        raise ValueError(
            f"checkpoint {path} was trained on other frozen parameters: {wrong[0]} and {len(wrong) - 1} more differ; "
            f"the base model is no longer the one that it was trained on"
        )


def _bytes(entry: dict) -> int:
    return math.prod(entry["shape"]) * _WIDTHS[entry["dtype"]]


def _is_text(value: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_in(value: object, known: Collection[str]) -> bool:
    return isinstance(value, str) and value in known


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _is_quarantine(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and type(item[1]) is int
        for item in value
    )


def _is_lineage(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and isinstance(item.get("branch"), str) and is_count(item.get("from_step"))
        for item in value
    )


_VALUES: dict[str, Callable[[object], bool]] = {
    "step": is_count,
    "cursor": is_count,
    "tokens": is_count,
    "substituted": is_count,
    "quarantine": _is_quarantine,
    "lineage": _is_lineage,
    "data": _is_dict,
    "layout": _is_dict,
    "config": _is_dict,
    "model": _is_dict,
    "task": lambda value: value is None or isinstance(value, dict),
    "labels": lambda value: isinstance(value, list) and all(isinstance(label, str) for label in value),
    "scores": lambda value: isinstance(value, dict) and all(isinstance(score, float | int) for score in value.values()),
    "frozen": lambda value: isinstance(value, dict) and all(_is_text(digest, _DIGEST) for digest in value.values()),
    "tokenizer_sha256": lambda value: _is_text(value, _SHA256),
    "files": _is_dict,
    "tensors": _is_dict,
}
"""What a value may be, for the keys that have a meaning."""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
