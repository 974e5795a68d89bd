"""The next step's batch, and what the ranks agree on about it, while the present step is computed.

A thread takes the batch from the reader, sums a few integers over the ranks, and copies the arrays to the device. So
neither a slow network between the hosts nor a copy lets a device wait. What the ranks tell each other (a request to
stop, damaged data, how far a save is) is as old as the start of the step before.

Each rank adds up at the same points of the program: once for each step of a reader, on a process group of its own.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from ingot.data.loader.reader import StepBatch
from ingot.launcher.training.bad_data import BadDataWatch, Found
from ingot.launcher.training.inputs import DeviceInputs, InputCopier
from ingot.launcher.training.job import Job
from ingot.launcher.training.progress import Progress
from ingot.launcher.training.step_timer import needed_flops
from ingot.parallel.mesh import sum_over_ranks

MEGA = 1e6  # FLOPs are added up in millions, which fit into an integer of 64 bits
Votes = Callable[[], Sequence[int]]


@dataclass(frozen=True)
class AgreedStep:
    """One rank's part of a step, and sums over all ranks.

    Attributes:
        batch: as the reader gave it.
        inputs: its micro-batches on the device.
        found: the damage that this rank tells the others.
        flops: that forward and backward need.
        bad_data: sums of `Found.counts`.
        votes: sums of the integers that the caller added.
    """

    batch: StepBatch
    inputs: list[DeviceInputs]
    found: Found
    flops: float
    num_targets: int
    num_tokens: int
    fingerprint: int
    substituted: int
    bad_data: tuple[int, int]
    votes: Sequence[int]


class StepsAhead:
    """The steps of a job's reader, each agreed on before it is needed.

    Args:
        bad_data: says what this rank has found damaged.
        votes: further integers of this rank. They are asked for once for each step, on the thread that iterates.
    """

    def __init__(self, job: Job, bad_data: BadDataWatch, votes: Votes):
        self.job, self.mesh, self.bad_data, self.votes = job, job.engine.mesh, bad_data, votes
        self._copier = InputCopier(self.mesh.device)
        self._read_again = False

    def read_again(self) -> None:
        """The steps after the present one are read again: more data are known to be damaged. Each rank must call it."""
        self._read_again = True

    def steps(self, progress: Progress, last: int) -> Generator[AgreedStep, None, None]:
        """The steps after `progress` up to step `last`. Each must be done, and be in `progress`, before the next one
        is taken. Close the generator if it is not used to its end."""
        with ThreadPoolExecutor(1, thread_name_prefix="step-ahead") as thread:
            while progress.step < last:
                self._read_again = False
                size, end = self.job.batch_sizes.size_at(progress.step + 1)
                count = min(last, end or last) - progress.step
                reading = self.job.reader.steps(progress.cursor, progress.cursor + count * size, size)
                with closing(reading):
                    yield from self._steps(thread, reading, count)

    def _steps(
        self, thread: ThreadPoolExecutor, reading: Generator[StepBatch, None, None], count: int
    ) -> Generator[AgreedStep, None, None]:
        waiting: Future[AgreedStep] | None = thread.submit(self._agree, reading, list(self.votes()))
        try:
            for number in range(1, count + 1):
                assert waiting is not None
                step, waiting = waiting.result(), None
                if number < count:
                    waiting = thread.submit(self._agree, reading, list(self.votes()))
                yield step
                if self._read_again:
                    return
        finally:
            # The other ranks are adding up the same step. What it found is told again with the next one.
            if waiting is not None:
                self.bad_data.put_back(waiting.result().found)

    def _agree(self, reading: Generator[StepBatch, None, None], votes: Sequence[int]) -> AgreedStep:
        batch = next(reading)
        found = self.bad_data.found(batch.error)
        counts = [batch.num_targets, batch.num_tokens, batch.fingerprint, batch.substituted]
        counts = [count * (self.mesh.tensor_rank == 0) for count in counts]  # tensor ranks read the same data
        flops = round(needed_flops(batch.micro_batches, self.job.model, self.job.task) / MEGA)
        counts.append(flops * (self.mesh.tensor_rank == 0))
        sums = sum_over_ranks([*counts, *found.counts, *votes], self.mesh.control_group)
        num_targets, num_tokens, fingerprint, substituted, flops, num_damages, num_errors, *voted = sums
        return AgreedStep(
            batch,
            self._copier.copy(batch.micro_batches),
            found,
            flops=flops * MEGA,
            num_targets=num_targets,
            num_tokens=num_tokens,
            fingerprint=fingerprint,
            substituted=substituted,
            bad_data=(num_damages, num_errors),
            votes=voted,
        )
