"""The shards of a split as the manifest lists them, stored by columns: only shards that are in use become objects.

With 100,000 shards this matters. The checks also go column by column, in a third of the time of a check by lines.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

MAX_COUNT = 2**53  # JSON readers agree on integers up to here

_NAME = re.compile(r"[^./\\:\0-\x1f\x7f][^/\\:\0-\x1f\x7f]{0,199}")
_HASH = re.compile(r"[0-9a-f]{64}")
_KEYS = ("name", "index", "sha256", "index_sha256", "bytes", "tokens", "documents")


@dataclass(frozen=True, slots=True)
class Shard:
    """An entry of the manifest. Sizes are in bytes; `index` is the name of the index file."""

    name: str
    bytes: int
    sha256: str
    tokens: int
    documents: int
    index: str
    index_sha256: str


class ShardList(Sequence[Shard]):
    """A sequence of `Shard`.

    Attributes:
        names, indexes: file names of all shards and of their indexes.
        bytes, tokens, documents: int64 [shards].
    """

    def __init__(self, entries: list[dict], width: int):
        """`width` is the bytes of a token. Raises ValueError, TypeError or KeyError for entries that are not shards."""
        columns = [[entry[key] for entry in entries] for key in _KEYS]
        for key, column, (are_all, check_one) in zip(_KEYS, columns, _CHECKS, strict=True):
            if not are_all(column):
                for value in column:  # one of them raises
                    check_one(key, value)
        self.names, self.indexes = columns[:2]
        self._hashes = [bytes.fromhex("".join(column)) for column in columns[2:4]]
        self.bytes, self.tokens, self.documents = (np.array(column, dtype=np.int64) for column in columns[4:])
        # Neither side can overflow: counts are at most 2^53, and a width is 2 or 4.
        for n in np.flatnonzero(self.tokens * width + self.documents * 4 > self.bytes)[:1]:
            raise ValueError(f"{self.names[n]} of {self.bytes[n]} bytes cannot hold {self.tokens[n]} tokens")
        if len(set(self.names)) != len(self.names):
            raise ValueError("a shard is listed twice")

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, number: int) -> Shard: ...

    @overload
    def __getitem__(self, number: slice) -> list[Shard]: ...

    def __getitem__(self, number: int | slice) -> Shard | list[Shard]:
        if isinstance(number, slice):
            return [self[n] for n in range(len(self))[number]]
        number = range(len(self))[number]
        return Shard(
            self.names[number],
            int(self.bytes[number]),
            self._hash(0, number),
            int(self.tokens[number]),
            int(self.documents[number]),
            self.indexes[number],
            self._hash(1, number),
        )

    def _hash(self, which: int, number: int) -> str:
        return self._hashes[which][32 * number : 32 * number + 32].hex()

    def sha256(self, number: int) -> str:
        return self._hash(0, number)

    def digest(self) -> bytes:
        """sha256 over the hashes and counts of all shards, in order."""
        digest = hashlib.sha256(b"%d shards " % len(self))
        for hashes in self._hashes:
            digest.update(hashes)
        for counts in (self.tokens, self.documents):
            digest.update(counts.astype("<i8").data)
        return digest.digest()


def check_name(key: str, value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{key} {str(value)[:80]!r} is not the plain name of a file in the corpus folder")
    return value


def check_hash(key: str, value: object) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ValueError(f"{key} {str(value)[:80]!r} is not a sha256 in hex")
    return value


def check_count(key: str, value: object, least: int = 0, most: int = MAX_COUNT) -> int:
    if type(value) is not int or not least <= value <= most:
        limit = f" of at most {most:,}" if most < MAX_COUNT else ""
        raise ValueError(f"{key} is {str(value)[:80]}, which is not a count{limit}")
    return value


def _all_names(column: list) -> bool:
    return _all_are(str, column) and all(map(_NAME.fullmatch, column))


def _all_hashes(column: list) -> bool:
    if not _all_are(str, column) or not set(map(len, column)) <= {64}:
        return False
    digits = "".join(column)
    try:
        return bytes.fromhex(digits).hex() == digits
    except ValueError:
        return False


def _all_counts(column: list) -> bool:
    return _all_are(int, column) and min(column, default=0) >= 0 and max(column, default=0) <= MAX_COUNT


def _all_are(kind: type, column: list) -> bool:
    return set(map(type, column)) <= {kind}


_CHECKS = [(_all_names, check_name)] * 2 + [(_all_hashes, check_hash)] * 2 + [(_all_counts, check_count)] * 3
