"""Several processes, on one machine or many, that prepare one corpus: they meet in the partial folder and nowhere else.

Rank and number of ranks come from the environment, as torchrun sets it. Each rank shows that it is alive by touching a
file; who waits for a rank that has stopped doing so gives up after `timeout` seconds, with a message that names it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

BEAT_SECONDS = 2.0
POLL_SECONDS = 0.2


class RankCoordinator:
    """`rank` of `num_ranks`, and the folder where they meet."""

    def __init__(self, folder: Path, rank: int, num_ranks: int, timeout: float):
        self.folder, self.rank, self.num_ranks, self.timeout = folder, rank, num_ranks, timeout

    @staticmethod
    def from_environment(folder: Path, timeout: float) -> RankCoordinator:
        """Raises ValueError for a RANK and WORLD_SIZE that do not fit together."""
        words = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (words[0].isdigit() and words[1].isdigit() and int(words[0]) < int(words[1])):
            raise ValueError(
                f"RANK={words[0]} and WORLD_SIZE={words[1]} in the environment: expected 0 <= RANK < WORLD_SIZE"
            )
        return RankCoordinator(folder, int(words[0]), int(words[1]), timeout)

    @property
    def alone(self) -> bool:
        return self.num_ranks == 1

    def mine(self, numbers: Iterable[int]) -> list[int]:
        """Which of the pieces are this rank's."""
        return [number for number in numbers if number % self.num_ranks == self.rank]

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Shows the others that this rank is at work."""
        if self.alone:
            yield
            return
        stop = threading.Event()

        def beat() -> None:
            number = 0
            while True:
                number += 1
                with suppress(OSError):  # the folder is gone, or about to come
                    self._beat_of(self.rank).write_text(str(number))
                if stop.wait(BEAT_SECONDS):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._beat_of(self.rank).unlink(missing_ok=True)

    def _beat_of(self, rank: int) -> Path:
        return self.folder / f"alive-{rank}"

    def wait(self, find: Callable[[], T | None], what: str, ranks: Callable[[], Iterable[int]] | None = None) -> T:
        """What `find` returns, as soon as that is not None. `ranks` names those it depends on (else: rank 0).

        Raises ValueError when one of them has shown no sign of life for the timeout.
        """
        seen: dict[int, tuple[str, float]] = {}
        while (value := find()) is None:
            now = time.monotonic()
            for rank in ranks() if ranks else [0]:
                try:
                    beat = self._beat_of(rank).read_text()
                except OSError:
                    beat = ""
                if rank not in seen or seen[rank][0] != beat:
                    seen[rank] = beat, now
                elif now - seen[rank][1] > self.timeout:
                    raise ValueError(
                        f"rank {self.rank} waited for {what} by rank {rank}, of which there has been no sign for "
                        f"{self.timeout:.0f} seconds in {self.folder}. Do all ranks share that folder and the same "
                        f"options? Finished pieces are kept: run the same command again (see also --timeout_seconds)"
                    )
            time.sleep(POLL_SECONDS)
        return value
