"""Which files make up a corpus, in which order, and in which split each document goes.

Everything about a document follows from its name (the path relative to the input folder, and its row in a file of
records) and its content, never from where the folder lies or which other files are there.
"""

from __future__ import annotations

import fnmatch
import json
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

HUB = "hf:"
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]{0,63}")


@dataclass(frozen=True)
class Input:
    """A file, a folder, a folder saved by Hugging Face `datasets`, or `hf:NAME` (`hf:NAME:CONFIGURATION`).

    `split`: auto (the hash of each document's name decides; the splits of a saved or downloaded dataset stay what they
    are) or the split that everything goes to. `where`: filters on other columns, of which all must hold.
    """

    path: str | Path
    split: str = AUTO
    text_column: str = "text"
    where: tuple[str, ...] = ()
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None

    def check(self) -> None:
        """Raises ValueError for a split that cannot be a file's name and for filters that cannot be read."""
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

    A folder is walked, and a file below it is taken when its name, or the last part of it, matches one of the globs in
    `include` and neither it nor a folder on the way matches one in `exclude` (`*` crosses slashes). A file that is
    given itself is always taken. Symbolic links are followed, each folder being entered once, so loops end.

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
        # Sorted, so that of two links to one folder it is always the same that counts.
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
    """All files of all inputs, sorted by name. Raises ValueError as `find_files` does, and for a bad `Input`."""
    found: list[FoundFile] = []
    for given in inputs:
        given = given if isinstance(given, Input) else Input(given)
        given.check()
        if str(given.path).startswith(HUB):
            files = _downloaded(str(given.path))
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
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        return [(f"{split}/{n}", p, split) for split in splits for n, p, _ in _saved_dataset(folder / split) or []]
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        files = json.loads((folder / "state.json").read_text())["_data_files"]
        return [(Path(f["filename"]).name, folder / Path(f["filename"]).name, AUTO) for f in files]
    return None


def _downloaded(address: str) -> list[tuple[str, Path, str]]:
    """(name, file, split) of `hf:NAME[:CONFIGURATION]`, fetched into the cache of `datasets` if it is not there."""
    import datasets

    name, _, configuration = address.removeprefix(HUB).partition(":")
    try:
        splits = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # many kinds: no network, no such name, a configuration missing; all are the user's
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
    source_bytes: int = 64_000_000,
    threads: int = 1,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> tuple[list[FilePart], Skipped]:
    """Read every file once: leave out what is no text, cut the rest into sources, in corpus order, with their splits.

    The order is by a hash of (seed, name), so any beginning of it is a fair sample; `max_bytes` keeps the shortest
    beginning with at least that many bytes (0: all), and of a last source with records as many as it takes. `progress`
    gets the bytes that were read, `threads` read at once; the result does not depend on them.

    Raises ValueError where no document is left, and as `find_input_files` and `scan_file` do.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), is {validation_fraction}")
    skipped = Skipped()
    sources: list[FilePart] = []
    total = 0
    order = lambda item: (hash64("order", str(seed), item.name), item.name)  # noqa: E731
    found = sorted(find_input_files(inputs, include, exclude), key=order)

    def cut(file: FoundFile) -> tuple[list[FilePart], Skipped]:
        left_out = Skipped()
        given = file.given
        options = dict(source_bytes=source_bytes, text_column=given.text_column, where=given.where)
        return scan_file(file.name, file.path, left_out, split=file.split, progress=progress, **options), left_out

    with ThreadPoolExecutor(threads) as pool:
        for parts, left_out in pool.map(cut, found) if not max_bytes else map(cut, found):
            skipped.merge(left_out)
            sources += parts
            total += sum(part.size for part in parts)
            if max_bytes and total >= max_bytes:
                break
    sources = _beginning(sorted(sources, key=order), max_bytes)
    if not sources:
        raise ValueError(_nothing(inputs, include, exclude, skipped))
    return assign_splits(sources, validation_fraction), skipped


def _beginning(sources: list[FilePart], max_bytes: int) -> list[FilePart]:
    """The shortest beginning of at least `max_bytes` bytes, 0: all; records of the last source only up to there."""
    if not max_bytes:
        return sources
    kept: list[FilePart] = []
    left = max_bytes
    for source in sources:
        if left <= 0:
            break
        kept.append(source if source.kind == "text" or source.size <= left else replace(source, limit=left))
        left -= source.size
    return kept


def _nothing(inputs: Sequence, include: Sequence[str], exclude: Sequence[str], skipped: Skipped) -> str:
    where = ", ".join(str(i.path if isinstance(i, Input) else i) for i in inputs)
    none = (
        f"all {skipped.count} files that match were skipped: {skipped.describe()}" if skipped.count else "none matches"
    )
    return (
        f"no text in {where}: looked for files matching {', '.join(include)}"
        + (f" and not {', '.join(exclude)}" if exclude else "")
        + f"; {none}. Name another folder with --input or other globs with --include"
    )


def assign_splits(sources: list[FilePart], validation_fraction: float) -> list[FilePart]:
    """Text files that name no split go to validation when the hash of their name is below `validation_fraction`.

    When all sources are such files and that leaves one of the splits without any (and there are two documents to
    share), the document with the hash nearest to the border changes sides. With a fraction of 0 there is no validation
    split. Sources of records keep `auto`: there each document's own name decides.
    """
    if validation_fraction == 0:
        return [replace(s, split=TRAIN) if s.split == AUTO else s for s in sources]
    place = {s.name: hash64("split", s.name) / 2**64 for s in sources if s.split == AUTO and s.kind == "text"}
    chosen = {name for name, value in place.items() if value < validation_fraction}
    if len(place) == len({s.name for s in sources}) > 1:
        if not chosen:
            chosen = {min(place, key=place.__getitem__)}
        elif len(chosen) == len(place):
            chosen.discard(max(place, key=place.__getitem__))
    elif len(sources) == 1:
        chosen = set()

    def split(source: FilePart) -> str:
        if source.split != AUTO or source.kind != "text":
            return source.split
        return VALIDATION if source.name in chosen else TRAIN

    return [replace(source, split=split(source)) for source in sources]
