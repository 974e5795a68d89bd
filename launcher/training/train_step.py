"""One optimizer step: forward and backward for each micro-batch, update.

The slots, the learning rate and the random streams of a step are functions of its number.
"""

from collections.abc import Generator
from dataclasses import asdict, dataclass

import numpy as np
import torch

from ingot.launcher.training.bad_data import BadDataWatch
from ingot.launcher.training.job import Job
from ingot.launcher.training.progress import Progress
from ingot.launcher.training.step_ahead import AgreedStep, StepsAhead, Votes
from ingot.parallel.engines.engine import Batch
from ingot.parallel.optimizer import learning_rate_at


@dataclass(frozen=True)
class StepRecord:
    """What a step has done. Loss and gradient norm are still on the device: reading them lets the host wait."""

    step: int
    loss_sum: torch.Tensor
    num_targets: int
    grad_norm: torch.Tensor
    learning_rate: float
    num_tokens: int
    fingerprint: int

    def read(self) -> dict:
        """step, loss (mean over the targets), grad_norm, learning_rate, tokens, batch_fingerprint."""
        return {
            "step": self.step,
            "loss": float(self.loss_sum) / self.num_targets,
            "grad_norm": float(self.grad_norm),
            "learning_rate": self.learning_rate,
            "tokens": self.num_tokens,
            "batch_fingerprint": f"{self.fingerprint:016x}",
        }


class TrainStep:
    """Takes the optimizer steps of a job, and keeps `progress` up to date. Each rank calls it.

    Args:
        bad_data: handles damaged data.
        votes: integers that the ranks add up for each step; see `StepsAhead`.
    """

    def __init__(self, job: Job, progress: Progress, bad_data: BadDataWatch, votes: Votes = list):
        self.job, self.engine, self.progress, self.bad_data = job, job.engine, progress, bad_data
        self.mesh, self._ahead = job.engine.mesh, StepsAhead(job, bad_data, votes)

    def steps(self, last: int) -> Generator[AgreedStep, None, None]:
        """The steps up to step `last`. Hand each to `update` before the next one is taken."""
        return self._ahead.steps(self.progress, last)

    def update(self, agreed: AgreedStep) -> StepRecord:
        """Forward, backward and update.

        Raises:
            Unreadable: there are too many damaged data; raised on all ranks.
        """
        progress, step, cursor = self.progress, self.progress.step + 1, agreed.batch.cursor
        if self.bad_data.agree(*agreed.bad_data, agreed.found, step):
            self._ahead.read_again()
        self.bad_data.count_substitutes(agreed.substituted, cursor - progress.cursor)
        seed = self.job.config.run.seed
        torch.manual_seed((seed * 1_000_003 + step) * 65_537 + self.mesh.rank)  # dropout
        num_targets = max(1, agreed.num_targets)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        for number, inputs in enumerate(agreed.inputs, start=1):
            is_last = number == len(agreed.inputs)
            further = self._further_inputs(agreed.batch.micro_batches[number - 1], agreed.num_targets, step)
            loss_sum += self.engine.forward_backward(inputs.wait() | further, num_targets, is_last)
        learning_rate = self._learning_rate(step)
        grad_norm = self.engine.step(learning_rate, step)
        torch.distributed.all_reduce(loss_sum, group=self.mesh.data_group)
        progress.step, progress.cursor, progress.tokens = step, cursor, progress.tokens + agreed.num_tokens
        progress.substituted += agreed.substituted
        progress.quarantine = sorted(self.bad_data.names)
        return StepRecord(step, loss_sum, num_targets, grad_norm, learning_rate, agreed.num_tokens, agreed.fingerprint)

    def _further_inputs(self, micro_batch: dict[str, np.ndarray], num_targets: int, step: int) -> Batch:
        """Arguments of the model that depend on the step, and the weights of loss terms that only training has."""
        loss_terms = {name: weight for name, weight in asdict(self.job.config.loss).items() if weight}
        of_job = self.job.loss_inputs(micro_batch, num_targets, self.job.batch_sizes.size_at(step)[0])
        return of_job | loss_terms

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
