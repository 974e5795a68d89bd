"""One optimizer step: agree with the other ranks, forward and backward for each micro-batch, update.

The slots, the learning rate and the random streams of a step are functions of its number.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass

import numpy as np
import torch

from ingot.data.loader.reader import StepBatch
from ingot.launcher.training.bad_data import BadDataWatch
from ingot.launcher.training.inputs import to_device
from ingot.launcher.training.job import Job
from ingot.launcher.training.progress import Progress
from ingot.parallel.engines.engine import Batch
from ingot.parallel.mesh import sum_over_ranks
from ingot.parallel.optimizer import learning_rate_at


@dataclass(frozen=True)
class Agreed:
    """Sums over all ranks, which the ranks exchange before a step."""

    num_targets: int
    num_tokens: int
    fingerprint: int
    substituted: int
    votes: Sequence[int]
    bad_data: Sequence[int]


class TrainStep:
    """Takes the optimizer steps of a job, and keeps `progress` up to date. Each rank calls it.

    Args:
        bad_data: handles damaged data.
    """

    def __init__(self, job: Job, progress: Progress, bad_data: BadDataWatch):
        self.job, self.engine, self.progress, self.bad_data = job, job.engine, progress, bad_data
        self.mesh, self._read_again = job.engine.mesh, False

    def batches(self, last: int) -> Generator[StepBatch, None, None]:
        """The batches of the steps up to step `last`. Each must be used before the next one is taken.

        Batches that were read ahead are read again if the ranks agree on more damaged data.
        """
        progress = self.progress
        while progress.step < last:
            self._read_again = False
            size, end = self.job.batch_sizes.size_at(progress.step + 1)
            stop = progress.cursor + (min(last, end or last) - progress.step) * size
            with closing(self.job.reader.steps(progress.cursor, stop, size)) as batches:
                for batch in batches:
                    yield batch
                    if self._read_again:
                        break

    def agree(self, batch: StepBatch, votes: Sequence[int] = ()) -> Agreed:
        """Sums what the ranks must agree on, in one collective of integers.

        Args:
            votes: further integers to sum.
        """
        counts = [batch.num_targets, batch.num_tokens, batch.fingerprint, batch.substituted]
        counts = [count * (self.mesh.tensor_rank == 0) for count in counts]  # tensor ranks read the same data
        sums = sum_over_ranks([*counts, *votes, *self.bad_data.counts(batch.error)])
        num_targets, num_tokens, fingerprint, substituted = sums[: len(counts)]
        rest = sums[len(counts) :]
        return Agreed(num_targets, num_tokens, fingerprint, substituted, rest[: len(votes)], rest[len(votes) :])

    def update(self, batch: StepBatch, agreed: Agreed) -> dict:
        """Forward, backward and update. Returns the record of the step.

        Raises:
            Unreadable: there are too many damaged data; raised on all ranks.
        """
        progress, step = self.progress, self.progress.step + 1
        found, errors = agreed.bad_data
        self._read_again = self.bad_data.agree(found, errors, batch.error, step)
        self.bad_data.count_substitutes(agreed.substituted, batch.cursor - progress.cursor)
        seed = self.job.config.run.seed
        torch.manual_seed((seed * 1_000_003 + step) * 65_537 + self.mesh.rank)  # dropout
        num_targets = max(1, agreed.num_targets)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        for number, micro_batch in enumerate(batch.micro_batches, start=1):
            is_last = number == len(batch.micro_batches)
            inputs = self._inputs(micro_batch, agreed.num_targets, step)
            loss_sum += self.engine.forward_backward(inputs, num_targets, is_last)
        learning_rate = self._learning_rate(step)
        grad_norm = self.engine.step(learning_rate, step)
        torch.distributed.all_reduce(loss_sum, group=self.mesh.data_group)
        progress.step, progress.cursor, progress.tokens = step, batch.cursor, progress.tokens + agreed.num_tokens
        progress.substituted += agreed.substituted
        progress.quarantine = sorted(self.bad_data.names)
        return {
            "step": step,
            "loss": float(loss_sum) / num_targets,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "tokens": agreed.num_tokens,
            "batch_fingerprint": f"{agreed.fingerprint:016x}",
        }

    def _inputs(self, micro_batch: dict[str, np.ndarray], num_targets: int, step: int) -> Batch:
        """The arguments of the model, with the weights of the loss terms that are used only in training."""
        loss_terms = {name: weight for name, weight in asdict(self.job.config.loss).items() if weight}
        of_job = self.job.loss_inputs(micro_batch, num_targets, self.job.batch_sizes.size_at(step)[0])
        return to_device(micro_batch, self.mesh.device) | of_job | loss_terms

    def _learning_rate(self, step: int) -> float:
        options = self.job.config.optimizer
        return learning_rate_at(
            step,
            peak=options.learning_rate,
            schedule=options.schedule,
            warmup_steps=options.warmup_steps,
            lr_decay_steps=options.lr_decay_steps or self.job.config.run.num_steps,
            min_lr_ratio=options.min_lr_ratio,
            lr_decay_ratio=options.lr_decay_ratio,
        )
