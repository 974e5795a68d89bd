"""What is damaged, and so is not read: the one piece of data state that is no function of configuration and slot.

A bundle is named by its content, (sha256 of its shard, number in the shard), so the names mean the same on every rank,
wherever a corpus lies. A bundle gets in when its bytes do not fit their checksum and fetching them again did not help;
a whole shard when it is missing or its index cannot be used.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

WHOLE_SHARD = -1  # as the number of a bundle


@dataclass(frozen=True)
class Damage:
    """A bundle that cannot be read, or a whole shard (`bundle` is WHOLE_SHARD). `offset`, in bytes, is the place in the
    shard's file, where one can be named."""

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
    """A shard's bytes are not those that were written. `damage` says which, where that is known."""

    def __init__(self, message: str, damage: Damage | None = None):
        super().__init__(message)
        self.damage = damage


class Quarantine:
    """A set of bundles, for several corpora and any number of threads. It only grows.

    `version` changes whenever the set does, so that what was derived from it can be forgotten.
    """

    def __init__(self, names: Iterable[tuple[str, int]] = ()):
        self._lock = threading.Lock()
        self._damage: dict[tuple[str, int], Damage | None] = {(str(s), int(b)): None for s, b in names}
        self._found: list[Damage] = []
        self.version = 0

    def __len__(self) -> int:
        return len(self._damage)

    def find(self, sha256: str, bundle: int) -> tuple[bool, Damage | None]:
        """Whether the bundle is in it, and what is known about its damage (nothing, when another rank or an earlier
        run saw it)."""
        for name in ((sha256, bundle), (sha256, WHOLE_SHARD)):
            if name in self._damage:
                return True, self._damage[name]
        return False, None

    def add(self, damage: Damage) -> None:
        """For whoever finds a damage. It holds for this process at once."""
        with self._lock:
            if damage.name not in self._damage:
                self._damage[damage.name] = damage
                self._found.append(damage)
                self.version += 1

    def take_found(self) -> list[Damage]:
        """What `add` got since the last call: to be told to the other ranks."""
        with self._lock:
            found, self._found = self._found, []
        return found

    def adopt(self, names: Iterable[tuple[str, int]]) -> None:
        """Take over what other ranks or an earlier run have found."""
        with self._lock:
            new = [(str(sha256), int(bundle)) for sha256, bundle in names]
            new = [name for name in new if name not in self._damage]
            self._damage.update(dict.fromkeys(new))
            self.version += bool(new)
