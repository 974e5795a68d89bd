"""The damaged bundles, which are not read: the only data state that is not a function of configuration and slot.

A bundle is named by its content: (sha256 of its shard, number in the shard). So a name means the same on every rank,
wherever the corpus is stored. A bundle is added if its bytes do not match their checksum, also after they were fetched
again. A whole shard is added if it is missing or its index cannot be used.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

WHOLE_SHARD = -1  # in place of the number of a bundle


@dataclass(frozen=True)
class Damage:
    """A bundle that cannot be read, or a whole shard (`bundle` is WHOLE_SHARD).

    `offset` is where the damage is in the shard's file, in bytes; None if that is not known."""

    corpus: str
    shard: str
    sha256: str
    bundle: int
    offset: int | None
    reason: str

    @property
    def name(self) -> tuple[str, int]:
        return self.sha256, self.bundle


class DamagedShard(ValueError):
    """A shard's bytes are not those that were written. `damage` says which bytes, if that is known."""

    def __init__(self, message: str, damage: Damage | None = None):
        super().__init__(message)
        self.damage = damage


class Quarantine:
    """A set of bundles, for several corpora and any number of threads. Bundles are added, never removed.

    `version` changes with the set: whoever caches something derived from the set compares it.
    """

    def __init__(self, names: Iterable[tuple[str, int]] = ()):
        self._lock = threading.Lock()
        self._damage: dict[tuple[str, int], Damage | None] = {(str(s), int(b)): None for s, b in names}
        self._found: list[Damage] = []
        self.version = 0

    def __len__(self) -> int:
        return len(self._damage)

    def find(self, sha256: str, bundle: int) -> tuple[bool, Damage | None]:
        """Whether the bundle is in the set, and its damage; None if another rank or an earlier run found the damage."""
        for name in ((sha256, bundle), (sha256, WHOLE_SHARD)):
            if name in self._damage:
                return True, self._damage[name]
        return False, None

    def add(self, damage: Damage) -> None:
        """Add damage that this process found. It counts for this process at once."""
        with self._lock:
            if damage.name not in self._damage:
                self._damage[damage.name] = damage
                self._found.append(damage)
                self.version += 1

    def take_found(self) -> list[Damage]:
        """The damage that `add` got since the last call, for the other ranks."""
        with self._lock:
            found, self._found = self._found, []
        return found

    def put_back(self, found: Iterable[Damage]) -> None:
        """Has the next `take_found` give this damage again."""
        with self._lock:
            self._found = [*found, *self._found]

    def adopt(self, names: Iterable[tuple[str, int]]) -> None:
        """Add what other ranks or an earlier run have found."""
        with self._lock:
            new = [(str(sha256), int(bundle)) for sha256, bundle in names]
            new = [name for name in new if name not in self._damage]
            self._damage.update(dict.fromkeys(new))
            self.version += bool(new)
