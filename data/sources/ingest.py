"""Finds the files of a corpus, their order, and the split of each document.

All of this depends on the name of a document (its path relative to the input folder, and its row in a file of records)
and on its content. It does not depend on where the folder is or which other files are in it.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ingot.data.sources.documents import TRAIN, VALIDATION, Skipped, hash64
from ingot.data.sources.file_parts import AUTO, FilePart
from ingot.data.sources.file_scan import scan_file
from ingot.data.sources.filters import parse_filter
from ingot.data.sources.held_out import hold_out_end
from ingot.safe_files import read_json

HUB = "hf:"
MAX_DATASET_BYTES = 2**27  # of the files that describe a saved dataset
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]{0,63}")


@dataclass(frozen=True)
class Input:
    """A file, a folder, a folder saved by Hugging Face `datasets`, or `hf:NAME` (`hf:NAME:CONFIGURATION`).

    Attributes:
        split: auto, or the split of all documents. With auto the hash of each document's name decides; the splits of a
            saved or downloaded dataset do not change.
        where: filters on other columns, which must all hold.
        include, exclude: globs; None: those of the call.
    """

    path: str | Path
    split: str = AUTO
    text_column: str = "text"
    where: tuple[str, ...] = ()
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None

    def check(self) -> None:
        """Raises ValueError for a split that cannot be part of a file name, and for filters that cannot be parsed."""
        if not _SPLIT.fullmatch(self.split):
            raise ValueError(f"split {self.split!r} of {self.path}: use letters, digits, _ and . only")
        if not str(self.path):
            raise ValueError("an input has no path")
        parse_filter(self.where)


@dataclass(frozen=True)
class FoundFile:
    """A file of an input, before it is read."""

    name: str
    path: Path
    split: str
    given: Input


def find_files(
    inputs: Sequence[str | Path], include: Sequence[str], exclude: Sequence[str] = ()
) -> list[tuple[str, Path]]:
    """All (name, path) below `inputs`, sorted by name.

    A file below a folder is taken if its name, or the last part of it, matches one of the globs in `include`, and if
    neither it nor a folder above it matches one in `exclude` (`*` also matches slashes). A file that is itself an input
    is always taken. Symbolic links are followed. Each folder is entered once, so loops of links end.

    Raises ValueError for an input that does not exist.
    """
    found: list[tuple[str, Path]] = []
    for given in map(Path, inputs):
        if given.is_dir():
            found.extend((str(path.relative_to(given).as_posix()), path) for path in _walk(given, include, exclude))
        elif given.is_file():
            found.append((given.name, given))
        else:
            raise ValueError(f"input {given} does not exist")
    return sorted(found, key=lambda item: item[0])  # stable: equal names keep the order of the inputs


def _walk(root: Path, include: Sequence[str], exclude: Sequence[str]) -> Iterator[Path]:
    entered: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        here = Path(folder)
        # Sorted: of two links to one folder always the same one is followed.
        folders[:] = sorted(f for f in folders if not _matches((here / f).relative_to(root).as_posix(), exclude))
        for file in files:
            name = (here / file).relative_to(root).as_posix()
            if _matches(name, include) and not _matches(name, exclude) and (here / file).is_file():
                yield here / file


def _matches(name: str, globs: Sequence[str]) -> bool:
    last = name.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(last, glob) for glob in globs)


def find_input_files(
    inputs: Sequence[str | Path | Input], include: Sequence[str], exclude: Sequence[str] = ()
) -> list[FoundFile]:
    """All files of all inputs, sorted by name. Raises ValueError as `find_files` does, and for an invalid `Input`."""
    found: list[FoundFile] = []
    for given in inputs:
        given = given if isinstance(given, Input) else Input(given)
        given.check()
        if str(given.path).startswith(HUB):
            files = _download_from_hub(str(given.path))
        elif (saved := _saved_dataset(Path(given.path))) is not None:
            files = saved
        else:
            only = include if given.include is None else given.include
            without = exclude if given.exclude is None else given.exclude
            files = [(name, path, AUTO) for name, path in find_files([given.path], only, without)]
        found += [
            FoundFile(name, path, given.split if given.split != AUTO else own, given) for name, path, own in files
        ]
    return sorted(found, key=lambda file: file.name)  # stable: equal names keep the order of the inputs


def _saved_dataset(folder: Path) -> list[tuple[str, Path, str]] | None:
    """(name, file, split) of a folder that `datasets` saved; None for any other folder."""
    if (folder / "dataset_dict.json").is_file():
        splits = _entries(folder / "dataset_dict.json", "splits")
        if odd := [split for split in splits if not isinstance(split, str) or not _SPLIT.fullmatch(split)]:
            raise ValueError(f"{folder / 'dataset_dict.json'} names the split {str(odd[0])[:80]!r}: save it again")
        return [(f"{split}/{n}", p, split) for split in splits for n, p, _ in _saved_dataset(folder / split) or []]
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        files = _entries(folder / "state.json", "_data_files")  # the format of save_to_disk
        names = [file.get("filename") if isinstance(file, dict) else None for file in files]
        right = [Path(name).name for name in names if isinstance(name, str) and Path(name).name]
        if len(right) != len(names):
            raise ValueError(f"{folder / 'state.json'} has an entry without the name of a file: save it again")
        return [(name, folder / name, AUTO) for name in right]
    return None


def _entries(path: Path, key: str) -> list:
    """The list under a key of a JSON file. Raises ValueError if there is none."""
    values = read_json(path, max_bytes=MAX_DATASET_BYTES)
    found = values.get(key) if isinstance(values, dict) else None
    if not isinstance(found, list):
        raise ValueError(f"{path} has no list {key}, as a dataset that `datasets` saved has: save it again")
    return found


def _download_from_hub(address: str) -> list[tuple[str, Path, str]]:
    """(name, file, split) of `hf:NAME[:CONFIGURATION]`, downloaded into the cache of `datasets` if needed."""
    import datasets

    name, _, configuration = address.removeprefix(HUB).partition(":")
    try:
        splits = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # many classes: no network, no such name, no such configuration
        raise ValueError(f"{address} cannot be loaded: {type(error).__name__}: {error}") from error
    label = Path(name).name
    return [
        (f"{label}/{split}/{Path(file['filename']).name}", Path(file["filename"]), split)
        for split, dataset in splits.items()
        for file in dataset.cache_files
    ]


def scan(
    inputs: Sequence[str | Path | Input],
    include: Sequence[str],
    exclude: Sequence[str] = (),
    *,
    validation_fraction: float = 0.01,
    max_bytes: int = 0,
    seed: int = 0,
    part_bytes: int = 64_000_000,
    separator: str = "",
    max_document_bytes: int = 0,
    threads: int = 1,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> tuple[list[FilePart], Skipped]:
    """Read every file once: skip files that are not text, divide the rest into parts, with their order and splits.

    The order is by a hash of (seed, name), so the first parts are a fair sample of all. The result does not depend on
    `threads`.

    Args:
        max_bytes: keep the fewest first parts that have at least so many bytes; of a last part with records keep only
            the records that are needed. 0: keep all.
        part_bytes, separator, max_document_bytes: see `scan_file`.
        progress: gets the number of bytes that were read.

    Returns:
        The parts in the order of the corpus, and what was skipped.

    Raises:
        ValueError: no document is left, and as `find_input_files` and `scan_file` do.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), is {validation_fraction}")
    skipped = Skipped()
    kept: list[FilePart] = []
    total = 0
    order = lambda item: (hash64("order", str(seed), item.name), item.name)  # noqa: E731
    found = sorted(find_input_files(inputs, include, exclude), key=order)

    def scan_found(file: FoundFile) -> tuple[list[FilePart], Skipped]:
        file_skipped = Skipped()
        parts = scan_file(
            file.name,
            file.path,
            file_skipped,
            part_bytes=part_bytes,
            text_column=file.given.text_column,
            where=file.given.where,
            split=file.split,
            separator=separator,
            max_document_bytes=max_document_bytes,
            progress=progress,
        )
        return parts, file_skipped

    with ThreadPoolExecutor(threads) as pool:
        for parts, file_skipped in pool.map(scan_found, found) if not max_bytes else map(scan_found, found):
            skipped.merge(file_skipped)
            kept += parts
            total += sum(part.size for part in parts)
            if max_bytes and total >= max_bytes:
                break
    kept = _limit_bytes(sorted(kept, key=order), max_bytes)
    if not kept:
        raise ValueError(_no_text_message(inputs, include, exclude, skipped))
    return assign_splits(hold_out_end(kept, validation_fraction), validation_fraction), skipped


def _limit_bytes(parts: list[FilePart], max_bytes: int) -> list[FilePart]:
    """The fewest first parts with at least `max_bytes` bytes (0: all). A last part of records gets a limit."""
    if not max_bytes:
        return parts
    kept: list[FilePart] = []
    left = max_bytes
    for part in parts:
        if left <= 0:
            break
        kept.append(part if part.kind == "text" or part.size <= left else replace(part, limit=left))
        left -= part.size
    return kept


def _no_text_message(inputs: Sequence, include: Sequence[str], exclude: Sequence[str], skipped: Skipped) -> str:
    where = ", ".join(str(i.path if isinstance(i, Input) else i) for i in inputs)
    none = (
        f"all {skipped.count} files that match were skipped: {skipped.describe()}" if skipped.count else "none matches"
    )
    return (
        f"no text in {where}: looked for files matching {', '.join(include)}"
        + (f" and not {', '.join(exclude)}" if exclude else "")
        + f"; {none}. Name another folder with --input or other globs with --include"
    )


def assign_splits(parts: list[FilePart], validation_fraction: float) -> list[FilePart]:
    """Text files with split auto go to validation if the hash of their name is below `validation_fraction`.

    If all parts are such files, there are at least two, and one of the splits gets none, then the file whose hash is
    nearest to the border changes its split. With a fraction of 0 there is no validation split. Parts of records keep
    the split auto: there each document's own name decides.
    """
    if validation_fraction == 0:
        return [replace(s, split=TRAIN) if s.split == AUTO else s for s in parts]
    position = {s.name: hash64("split", s.name) / 2**64 for s in parts if s.split == AUTO and s.kind == "text"}
    chosen = {name for name, value in position.items() if value < validation_fraction}
    if len(position) == len({s.name for s in parts}) > 1:
        if not chosen:
            chosen = {min(position, key=position.__getitem__)}
        elif len(chosen) == len(position):
            chosen.discard(max(position, key=position.__getitem__))
    elif len(parts) == 1:
        chosen = set()

    def split(part: FilePart) -> str:
        if part.split != AUTO or part.kind != "text":
            return part.split
        return VALIDATION if part.name in chosen else TRAIN

    return [replace(part, split=split(part)) for part in parts]
