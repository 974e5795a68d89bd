"""Documents, the count of everything that was skipped, and the split of a document."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True, slots=True)
class Document:
    """A text.

    Attributes:
        file: name of its file.
        row: number of its record in the file (a line, a table's row, a sample), from 1; 0 if the file is the document.
    """

    file: str
    text: str
    row: int = 0

    @property
    def name(self) -> str:
        return f"{self.file}:{self.row}" if self.row else self.file


@dataclass
class Skipped:
    """How many files or records were skipped, by reason, and where the first one of each reason was."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    def add(self, reason: str, where: str, count: int = 1) -> None:
        if count:
            self.counts[reason] = self.counts.get(reason, 0) + count
            self.first.setdefault(reason, where)

    def merge(self, other: Skipped) -> None:
        """Add the counts of a later part of the corpus."""
        for reason, count in other.counts.items():
            self.add(reason, other.first[reason], count)

    def describe(self) -> str:
        """For example `3 not UTF-8 (first: a/b.txt), 1 empty (first: c.txt)`; empty if nothing was skipped."""
        return ", ".join(f"{count:,} {reason} (first: {self.first[reason]})" for reason, count in self.counts.items())


def names_of(documents: Iterable[tuple[str, int]]) -> list[str]:
    """Names of (file, row) pairs. Consecutive rows of a file become one name: `poems.jsonl:4-97`."""
    names: list[str] = []
    file, first, last = "", 0, 0
    for next_file, row in [*documents, ("", -1)]:
        if row > 0 and next_file == file and row == last + 1:
            last = row
            continue
        if file:
            names.append(file if not first else f"{file}:{first}" + (f"-{last}" if last > first else ""))
        file, first, last = next_file, row, row
    return names


def hash64(*parts: str) -> int:
    """A 64-bit hash of the parts; the same in every process and version."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).digest()[:8], "big")


def split_of(name: str, validation_fraction: float) -> str:
    """The split of a document: validation if the hash of its name, as a fraction, is below `validation_fraction`."""
    return VALIDATION if hash64("split", name) / 2**64 < validation_fraction else TRAIN
