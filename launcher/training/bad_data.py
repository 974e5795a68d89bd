"""What the ranks agree on about damaged data: what is not read any more, when it is too much, and when all must stop.

A rank that meets damage goes on at once, with other sequences (data/loader), and tells the others along with the
counts of the step. From the next step on nobody reads what one rank found damaged. So ranks never wait for one another,
take the same number of steps, and the quarantine of a checkpoint is all that a resume needs to repeat the order.
"""

import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist

from ingot.data.corpus.quarantine import DamagedShard, Quarantine
from ingot.data.loader.reader import NoReadableData
from ingot.launcher.runtime import exit_codes
from ingot.launcher.training.callbacks.callback import Callbacks
from ingot.parallel.mesh import sum_over_ranks

WINDOW = 10_000  # sequences, of which data.max_bad_fraction may be substitutes; or those of one step, if that has more
FILE = "quarantine.jsonl"


class Unreadable(Exception):
    """The data cannot be read on: raised on all ranks alike. `code` is the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class BadDataWatch:
    """The damaged data that a run meets.

    Args:
        quarantine: what this rank's readers leave out; given to their corpora.
        folder: the run's folder, where rank 0 lists in FILE what is damaged; None: it is not listed.
        max_bad_fraction: of WINDOW, as data.max_bad_fraction says.
    """

    def __init__(self, quarantine: Quarantine, callbacks: Callbacks, folder: Path | None, *, max_bad_fraction: float):
        self.quarantine, self.callbacks, self.folder = quarantine, callbacks, folder
        self.max_bad_fraction = max_bad_fraction
        self.names: set[tuple[str, int]] = set()  # of the quarantine, as all ranks know it
        self._window: deque[tuple[int, int]] = deque()  # (sequences, substitutes) of the latest steps
        self._mine: list = []

    def start(self, names: Sequence[tuple[str, int]]) -> None:
        """Go on with the quarantine of a checkpoint."""
        self.names = {(str(sha256), int(bundle)) for sha256, bundle in names}
        self.quarantine.adopt(self.names)

    def counts(self, error: Exception | None) -> list[int]:
        """Two integers to be summed over ranks: damages that this rank has newly found, and errors."""
        self._mine = self.quarantine.take_found()
        return [len(self._mine), error is not None]

    def agree(self, num_found: int, num_errors: int, error: Exception | None, step: int) -> bool:
        """With the sums of `counts`, on each rank. Whether the quarantine has grown, so that steps read ahead are void.

        Raises:
            Unreadable: on all ranks, when one of them had an error that damaged data explains.
            Exception: any other error, on the rank that had it, and RuntimeError on the others.
        """
        if not num_found and not num_errors:
            return False
        parts: list = [None] * dist.get_world_size()
        dist.all_gather_object(parts, ([asdict(damage) for damage in self._mine], _describe(error)))
        for rank, (found, _) in enumerate(parts):
            for damage in found:
                self._list(rank, step, damage)
        before = len(self.names)
        self.names |= {(damage["sha256"], damage["bundle"]) for found, _ in parts for damage in found}
        self.quarantine.adopt(self.names)
        problems = [(*problem, rank) for rank, (_, problem) in enumerate(parts) if problem]
        if problems:
            code, text, rank = max(problems)  # a code that is no 0 explains more than an error without
            if code:
                raise Unreadable(text, code)
            if error is not None:
                raise error
            raise RuntimeError(f"rank {rank} could not read its data: {text}")
        return len(self.names) > before

    def count_substitutes(self, substituted: int, slots: int) -> None:
        """Counts the substitutes of a step, over all ranks.

        Raises:
            Unreadable: there are too many.
        """
        self._window.append((slots, substituted))
        while sum(n for n, _ in self._window) > max(WINDOW, slots):
            self._window.popleft()
        bad = sum(n for _, n in self._window)
        if bad > self.max_bad_fraction * max(WINDOW, slots):
            raise Unreadable(
                f"{bad} of the last {sum(n for n, _ in self._window)} sequences lie in damaged data: more than "
                f"data.max_bad_fraction {self.max_bad_fraction} of {max(WINDOW, slots)} allows. "
                f"{(self.folder or Path()) / FILE} lists what is damaged; repair it and start again with "
                f"data.allow_changed true, or raise the bound",
                exit_codes.GIVE_UP,
            )

    def check(self, errors: Sequence[Exception | None], step: int) -> None:
        """Counts and agrees on what the readers of an evaluation met. Each rank must call it."""
        error = next((e for e in errors if e is not None), None)
        self.agree(*sum_over_ranks(self.counts(error)), error, step)

    def _list(self, rank: int, step: int, damage: dict) -> None:
        if dist.get_rank():
            return
        if self.folder is not None:
            line = {"rank": rank, "step": step, **damage, "time": round(time.time(), 3)}
            with open(self.folder / FILE, "a") as file:
                file.write(json.dumps(line) + "\n")
        self.callbacks.event(step, f"damaged data left out: {damage['shard']}: {damage['reason']}", rank=rank)


def _describe(error: Exception | None) -> tuple[int, str] | None:
    """Exit code, 0 where damaged data are no explanation, and what to say."""
    if error is None:
        return None
    if isinstance(error, DamagedShard):
        return exit_codes.BAD_INPUT, f"{error} (data.strict is true; without it other sequences would take its place)"
    if isinstance(error, NoReadableData):
        return exit_codes.GIVE_UP, str(error)
    return 0, f"{type(error).__name__}: {error}"
