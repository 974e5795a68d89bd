"""Coordinates several processes, on one machine or many, that prepare one corpus, through a shared folder only.

Rank and number of ranks come from the environment, as torchrun sets it. Each rank shows that it is alive by writing a
file again and again. A rank that waits for another one gives up if that file has not changed for `timeout` seconds,
with a message that names the rank.
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

HEARTBEAT_SECONDS = 2.0
POLL_SECONDS = 0.2


class RankCoordinator:
    """`rank` of `num_ranks`, and the folder that all ranks share."""

    def __init__(self, folder: Path, rank: int, num_ranks: int, timeout: float):
        self.folder, self.rank, self.num_ranks, self.timeout = folder, rank, num_ranks, timeout

    @staticmethod
    def from_environment(folder: Path, timeout: float) -> RankCoordinator:
        """Raises ValueError for a RANK and WORLD_SIZE that do not fit together."""
        rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdigit() and world_size.isdigit() and int(rank) < int(world_size)):
            raise ValueError(
                f"RANK={rank} and WORLD_SIZE={world_size} in the environment: expected 0 <= RANK < WORLD_SIZE"
            )
        return RankCoordinator(folder, int(rank), int(world_size), timeout)

    @property
    def is_single(self) -> bool:
        return self.num_ranks == 1

    def own_pieces(self, num_pieces: int) -> list[int]:
        """The pieces that this rank processes."""
        return list(range(self.rank, num_pieces, self.num_ranks))

    def ranks_of(self, pieces: Iterable[int]) -> set[int]:
        """The ranks that process these pieces."""
        return {piece % self.num_ranks for piece in pieces}

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Shows the other ranks that this rank is alive while the block runs."""
        if self.is_single:
            yield
            return
        stop = threading.Event()

        def beat() -> None:
            number = 0
            while True:
                number += 1
                with suppress(OSError):  # the folder is removed, or not made yet
                    self._heartbeat_file(self.rank).write_text(str(number))
                if stop.wait(HEARTBEAT_SECONDS):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._heartbeat_file(self.rank).unlink(missing_ok=True)

    def _heartbeat_file(self, rank: int) -> Path:
        return self.folder / f"alive-{rank}"

    def wait_for(self, find: Callable[[], T | None], what: str, ranks: Callable[[], Iterable[int]] = lambda: [0]) -> T:
        """Calls `find` until its result is not None, and returns that.

        Args:
            what: what is awaited, for messages.
            ranks: the ranks on which the result depends.

        Raises:
            ValueError: one of these ranks has shown no sign of life for the timeout.
        """
        seen: dict[int, tuple[str, float]] = {}
        while (value := find()) is None:
            now = time.monotonic()
            for rank in ranks():
                beat = read_text_or_empty(self._heartbeat_file(rank))
                if rank not in seen or seen[rank][0] != beat:
                    seen[rank] = beat, now
                elif now - seen[rank][1] > self.timeout:
                    raise ValueError(
                        f"rank {self.rank} waited for {what} by rank {rank}, which has shown no sign of life for "
                        f"{self.timeout:.0f} seconds in {self.folder}. Do all ranks share that folder and have the "
                        f"same options? Finished pieces are kept: run the same command again (see also "
                        f"--timeout_seconds)"
                    )
            time.sleep(POLL_SECONDS)
        return value


def read_text_or_empty(path: Path) -> str:
    """The text of a file; empty if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
