"""Damaged data: the ranks agree on what is not read any more, and on when a run must stop.

A rank that finds damage continues at once with other sequences (data/loader), and tells the other ranks together with
the counts of the step. From the next step on, no rank reads what one rank found damaged. So the ranks need no further
collective, and take the same number of steps. A resume repeats the order of the data from the quarantine in the
checkpoint.
"""

import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from ingot.data.corpus.quarantine import Damage, DamagedShard, Quarantine
from ingot.data.loader.reader import NoReadableData
from ingot.launcher.runtime import exit_codes
from ingot.launcher.training.callbacks.appended_file import AppendedFile
from ingot.launcher.training.callbacks.callback import Callbacks
from ingot.parallel.mesh import sum_over_ranks

WINDOW = 10_000
"""The number of latest sequences of which data.max_bad_fraction may be substitutes; all of a step that is larger."""
FILE = "quarantine.jsonl"


class Unreadable(Exception):
    """The run cannot go on with these data. It is raised on all ranks. `code` is the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Found:
    """What a rank tells the others about its data.

    Attributes:
        damages: found by this rank since it told them last.
        error: why it could not read a step.
    """

    damages: list[Damage]
    error: Exception | None

    @property
    def counts(self) -> list[int]:
        """Two integers to be summed over the ranks: new damages, and whether there was an error."""
        return [len(self.damages), self.error is not None]


class BadDataWatch:
    """The damaged data of a run.

    Args:
        quarantine: what this rank's readers skip; the corpora share it.
        callbacks: are told of each damage.
        folder: the run's folder. Rank 0 appends each damage to the file FILE in it. None: there is no such file.
        max_bad_fraction: the largest share of substitutes among the latest WINDOW sequences.
    """

    def __init__(self, quarantine: Quarantine, callbacks: Callbacks, folder: Path | None, *, max_bad_fraction: float):
        self.quarantine, self.callbacks, self.folder = quarantine, callbacks, folder
        self.max_bad_fraction = max_bad_fraction
        self.names: set[tuple[str, int]] = set()  # the quarantine, the same on all ranks: (sha256 of a shard, bundle)
        self._window: deque[tuple[int, int]] = deque()  # (sequences, substitutes) of the latest steps

    def start(self, names: Sequence[tuple[str, int]]) -> None:
        """Begins with the quarantine of a checkpoint."""
        self.names = {(str(sha256), int(bundle)) for sha256, bundle in names}
        self.quarantine.adopt(self.names)

    def found(self, error: Exception | None) -> Found:
        """What this rank has to tell the others: the damages since the last call, and its error."""
        return Found(self.quarantine.take_found(), error)

    def put_back(self, found: Found) -> None:
        """Has the damages told again, because the others have not heard of them."""
        self.quarantine.put_back(found.damages)

    def agree(self, num_found: int, num_errors: int, found: Found, step: int) -> bool:
        """Exchanges the new damages between the ranks. Each rank must call it with the sums of `Found.counts`.

        Returns:
            Whether the quarantine has grown. Then batches that were read ahead must be read again.

        Raises:
            Unreadable: a rank had an error that damaged data explain; raised on all ranks.
            Exception: any other error, on the rank that had it; the other ranks raise RuntimeError.
        """
        if not num_found and not num_errors:
            return False
        by_rank: list = [None] * dist.get_world_size()
        dist.all_gather_object(by_rank, ([asdict(damage) for damage in found.damages], _describe(found.error)))
        for rank, (damages, _) in enumerate(by_rank):
            for damage in damages:
                self._record(rank, step, damage)
        before = len(self.names)
        self.names |= {(damage["sha256"], damage["bundle"]) for damages, _ in by_rank for damage in damages}
        self.quarantine.adopt(self.names)
        problems = [(*problem, rank) for rank, (_, problem) in enumerate(by_rank) if problem]
        if problems:
            code, text, rank = max(problems)  # an error that damaged data explain comes before other errors
            if code:
                raise Unreadable(text, code)
            if found.error is not None:
                raise found.error
            raise RuntimeError(f"rank {rank} could not read its data: {text}")
        return len(self.names) > before

    def count_substitutes(self, substituted: int, slots: int) -> None:
        """Counts the substitutes of a step.

        Args:
            substituted: sequences of the step that replace damaged ones, over all ranks.
            slots: sequences of the step, over all ranks.

        Raises:
            Unreadable: there are too many substitutes.
        """
        self._window.append((slots, substituted))
        while sum(n for n, _ in self._window) > max(WINDOW, slots):
            self._window.popleft()
        bad = sum(n for _, n in self._window)
        if bad > self.max_bad_fraction * max(WINDOW, slots):
            raise Unreadable(
                f"{bad} of the last {sum(n for n, _ in self._window)} sequences are in damaged data: more than "
                f"data.max_bad_fraction {self.max_bad_fraction} of {max(WINDOW, slots)} allows. "
                f"{(self.folder or Path()) / FILE} lists the damage; repair the data and start again with "
                f"data.allow_changed true, or raise data.max_bad_fraction",
                exit_codes.GIVE_UP,
            )

    def check(self, errors: Sequence[Exception | None], step: int) -> None:
        """Does the same for the readers of an evaluation, after it. Each rank must call it."""
        found = self.found(next((error for error in errors if error is not None), None))
        num_found, num_errors = sum_over_ranks(found.counts)
        self.agree(num_found, num_errors, found, step)

    def _record(self, rank: int, step: int, damage: dict) -> None:
        if dist.get_rank():
            return
        if self.folder is not None:
            line = {"rank": rank, "step": step, **damage, "time": round(time.time(), 3)}
            try:
                AppendedFile(self.folder / FILE).append(json.dumps(line))
            except OSError as error:  # the checkpoint has it too
                self.callbacks.message(f"{self.folder / FILE} cannot be written: {error}")
        self.callbacks.event(step, f"damaged data skipped: {damage['shard']}: {damage['reason']}", rank=rank)


def _describe(error: Exception | None) -> tuple[int, str] | None:
    """The exit code (0 if damaged data do not explain the error) and the message."""
    if error is None:
        return None
    if isinstance(error, DamagedShard):
        return exit_codes.BAD_INPUT, f"{error} (data.strict is true; set it to false to read other sequences instead)"
    if isinstance(error, NoReadableData):
        return exit_codes.GIVE_UP, str(error)
    return 0, f"{type(error).__name__}: {error}"
