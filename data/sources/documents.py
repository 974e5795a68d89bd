"""What the sources of text hand on: documents, and a count of everything that was left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True, slots=True)
class Document:
    """A text. `row` is its number in the source (a line, a table's row, a sample; from 1), 0 where it is the source."""

    source: str
    text: str
    row: int = 0

    @property
    def name(self) -> str:
        return f"{self.source}:{self.row}" if self.row else self.source


@dataclass
class Skipped:
    """How many files or records were left out, by reason, and where the first of each kind was."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    def add(self, reason: str, place: str, count: int = 1) -> None:
        if count:
            self.counts[reason] = self.counts.get(reason, 0) + count
            self.first.setdefault(reason, place)

    def merge(self, other: Skipped) -> None:
        """Add what comes after this in the order of the corpus."""
        for reason, count in other.counts.items():
            self.add(reason, other.first[reason], count)

    def describe(self) -> str:
        """For example `3 not UTF-8 (first: a/b.txt), 1 empty (first: c.txt)`; empty when nothing was skipped."""
        return ", ".join(f"{count:,} {reason} (first: {self.first[reason]})" for reason, count in self.counts.items())


def names_of(documents: Iterable[tuple[str, int]]) -> list[str]:
    """Names of (source, row) pairs, with neighbouring rows of a source drawn together: `poems.jsonl:4-97`."""
    names: list[str] = []
    source, first, last = "", 0, 0
    for next_source, row in [*documents, ("", -1)]:
        if row > 0 and next_source == source and row == last + 1:
            last = row
            continue
        if source:
            names.append(source if not first else f"{source}:{first}" + (f"-{last}" if last > first else ""))
        source, first, last = next_source, row, row
    return names


def hash64(*parts: str) -> int:
    """64 bits that depend on the parts alone, in every process and version."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).digest()[:8], "big")


def split_of(name: str, validation_fraction: float) -> str:
    """The split of a document: validation when the hash of its name, as a fraction, is below `validation_fraction`."""
    return VALIDATION if hash64("split", name) / 2**64 < validation_fraction else TRAIN
