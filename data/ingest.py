"""Documents in: which files make up a corpus, in which order, and in which split each one goes.

A document is one text file. Everything about it follows from its name (the path relative to the input folder) and its
content, never from where the folder lies or which other files are there.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class Source:
    """One file: its name inside the input, its place, size in bytes, sha256 of the content (hex), and split."""

    name: str
    path: Path
    size: int
    sha256: str
    split: str = TRAIN


@dataclass(frozen=True)
class Document:
    name: str
    text: str


@dataclass
class Skipped:
    """Names of files that were left out, by reason."""

    undecodable: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.undecodable) + len(self.empty) + len(self.unreadable)

    def describe(self) -> str:
        """For example `3 not UTF-8 (first: a/b.txt), 1 empty (first: c.txt)`; empty when nothing was skipped."""
        kinds = [("not UTF-8", self.undecodable), ("empty", self.empty), ("unreadable", self.unreadable)]
        return ", ".join(f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds if names)


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


def scan(
    inputs: Sequence[str | Path],
    include: Sequence[str],
    exclude: Sequence[str] = (),
    *,
    validation_fraction: float = 0.01,
    max_bytes: int = 0,
    seed: int = 0,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> tuple[list[Source], Skipped]:
    """Read every file once: leave out what is no text, put the rest in corpus order and assign the splits.

    The order is by a hash of (seed, name), so any beginning of it is a fair sample; `max_bytes` keeps the shortest
    beginning with at least that many bytes (0: all). `progress` gets the bytes of each file.

    Raises ValueError where no document is left.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), is {validation_fraction}")
    skipped = Skipped()
    sources: list[Source] = []
    total = 0
    found = find_files(inputs, include, exclude)
    for name, path in sorted(found, key=lambda item: (_hash("order", str(seed), item[0]), item[0])):
        if max_bytes and total >= max_bytes:
            break
        try:
            content = path.read_bytes()
        except OSError:
            skipped.unreadable.append(name)
            continue
        progress(len(content))
        try:
            empty = not content.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            skipped.undecodable.append(name)
            continue
        if empty:
            skipped.empty.append(name)
            continue
        total += len(content)
        sources.append(Source(name, path, len(content), hashlib.sha256(content).hexdigest()))
    if not sources:
        where = ", ".join(str(i) for i in inputs)
        found_none = f"all {skipped.count} files that match were skipped: {skipped.describe()}" if skipped.count else ""
        raise ValueError(
            f"no text in {where}: looked for files matching {', '.join(include)}"
            + (f" and not {', '.join(exclude)}" if exclude else "")
            + (f"; {found_none}" if found_none else "; none matches")
            + ". Name another folder with --input or other globs with --include"
        )
    return assign_splits(sources, validation_fraction), skipped


def assign_splits(sources: list[Source], validation_fraction: float) -> list[Source]:
    """Each source goes to validation when the hash of its name, as a fraction, is below `validation_fraction`.

    When that leaves one of the splits without any (and there are two documents to share), the document with the hash
    nearest to the border changes sides. With a fraction of 0 there is no validation split.
    """
    if validation_fraction == 0 or len(sources) < 2:
        return sources
    place = {s.name: _hash("split", s.name) / 2**64 for s in sources}
    chosen = {name for name, value in place.items() if value < validation_fraction}
    if not chosen:
        chosen = {min(place, key=place.__getitem__)}
    elif len(chosen) == len(place) > 1:
        chosen.discard(max(place, key=place.__getitem__))
    return [replace(s, split=VALIDATION if s.name in chosen else TRAIN) for s in sources]


def read_documents(sources: Iterable[Source]) -> Iterator[Document]:
    """The text of each source: UTF-8 without its byte order mark, line ends as they are.

    Raises ValueError for a file that changed since `scan`.
    """
    for source in sources:
        content = source.path.read_bytes()
        if len(content) != source.size or hashlib.sha256(content).hexdigest() != source.sha256:
            raise ValueError(f"{source.path} changed while the corpus was being made: run again")
        yield Document(source.name, content.decode("utf-8-sig"))


def _hash(*parts: str) -> int:
    """64 bits that depend on the parts alone, in every process and version."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).digest()[:8], "big")
