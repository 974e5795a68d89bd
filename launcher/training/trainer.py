"""The one training loop. Pretraining and fine-tuning differ in the job that they hand in, not in the loop.

One turn: take the micro-batches of the step, agree on the count of targets, forward and backward, update, report.
Whatever a step needs besides the weights follows from its number: the slots, the learning rate, the random streams.
"""

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ingot.data.loader.reader import StepBatch
from ingot.launcher.runtime import exit_codes
from ingot.launcher.training.bad_data import BadDataWatch, Unreadable
from ingot.launcher.training.callbacks.callback import Callbacks
from ingot.launcher.training.inputs import to_device
from ingot.launcher.training.job import Job
from ingot.launcher.training.progress import Progress
from ingot.launcher.training.step_timer import StepTimer, peak_memory
from ingot.launcher.training.stop_signals import StopSignals
from ingot.model.costs.flops import peak_flops
from ingot.parallel import checkpoint
from ingot.parallel.engines.engine import Batch
from ingot.parallel.mesh import sum_over_ranks
from ingot.parallel.optimizer import learning_rate_at


class Trainer:
    """Trains a job until `job.config.run.steps`.

    Args:
        job: model, data and settings.
        folder: the run's folder.
        progress: how far the run is; it is kept up to date.
        callbacks: who listens.
        bad_data: what to do about damaged data.
        metadata: what checkpoints say besides the progress: configuration, layout, the identity of the data.
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        *,
        progress: Progress,
        callbacks: Callbacks,
        bad_data: BadDataWatch,
        metadata: dict,
    ):
        self.job, self.engine, self.progress = job, job.engine, progress
        self.callbacks, self.bad_data, self.metadata = callbacks, bad_data, metadata
        self.run_options, self.optimizer, self.mesh = job.config.run, job.config.optimizer, job.engine.mesh
        dtype = torch.bfloat16 if job.config.parallel.precision == "bf16" else torch.float32
        self.peak_flops = (
            peak_flops(torch.cuda.get_device_name(self.mesh.device), dtype) if self.mesh.device.type == "cuda" else None
        )
        self.saver = checkpoint.Saver(folder / "checkpoints", self.run_options.keep_checkpoints)
        self._saving: dict = {}  # what is known of the save under way
        self._signals = StopSignals()
        self._read_again = False
        self._saved_step = progress.step
        self._evaluated_step = -1
        self.scores: dict = {}  # of the last evaluation

    def run(self) -> int:
        """Trains to the end, or to a request to stop. Returns the exit code.

        Raises:
            BadInput: data are damaged and data.strict is set, or a checkpoint cannot be written.
        """
        try:
            with self._signals:
                return self._run()
        except Unreadable as problem:  # between two steps, on all ranks
            self.save()
            self._finish_saving()
            if problem.code == exit_codes.BAD_INPUT:
                raise exit_codes.BadInput(str(problem)) from None
            self.callbacks.event(self.progress.step, str(problem))
            return problem.code
        except checkpoint.CheckpointError as problem:  # raised on all ranks alike; older checkpoints are as they were
            raise exit_codes.BadInput(str(problem)) from None

    def _run(self) -> int:
        run, progress, timer = self.run_options, self.progress, StepTimer()
        self.engine.module.train()
        for batch in self._batches():
            data_seconds = timer.lap()
            record, stop = self._step(batch)
            timer.add(data_seconds, record["tokens"])
            self.callbacks.step_end(progress.step)
            if not math.isfinite(record["loss"]) or not math.isfinite(record["grad_norm"]):
                self.callbacks.event(
                    progress.step, "loss or gradient is not finite; nothing is saved", loss=record["loss"]
                )
                self._finish_saving()  # of an earlier step
                return exit_codes.GIVE_UP
            if progress.step % run.log_every == 0 or progress.step == run.steps or stop:
                self._report(record, timer)
            is_over = False
            if self.job.evaluate and run.eval_every and progress.step % run.eval_every == 0:
                is_over = self._evaluate()
            if run.save_every and progress.step % run.save_every == 0:
                self.save()
            if stop:
                self.save()
                self._finish_saving()
                self.callbacks.event(progress.step, "stopped on request; start again to go on")
                return exit_codes.REQUEUE
            if is_over:
                break
            timer.lap()  # the time of an evaluation or of a save is no part of a step
        self.save()
        if self.job.evaluate and self._evaluated_step != progress.step:
            self._evaluate()
        self._finish_saving()
        self.callbacks.train_end(progress.step, self.scores)
        return exit_codes.DONE

    def _batches(self) -> Iterator[StepBatch]:
        """The reader's steps, each of its size.

        Steps that were read ahead are read again when the ranks have agreed on another quarantine.
        """
        progress, last = self.progress, self.run_options.steps
        while progress.step < last:
            self._read_again = False
            size, end = self.job.batch_sizes.size_at(progress.step + 1)
            stop = progress.cursor + (min(last, end or last) - progress.step) * size
            with closing(self.job.reader.steps(progress.cursor, stop, size)) as batches:
                for batch in batches:
                    yield batch
                    if self._read_again:
                        break

    def save(self) -> None:
        """Begins a checkpoint of the present state. Training waits only for a copy in host memory."""
        progress = self.progress
        if self._saved_step == progress.step:
            return
        self._finish_saving()
        start = time.perf_counter()
        self.saver.begin(
            self.engine.shards(),
            step=progress.step,
            metadata={**{k: v for k, v in asdict(progress).items() if k != "step"}, **self.metadata},
        )
        self._saved_step = progress.step
        self._saving = {"step": progress.step, "seconds": round(time.perf_counter() - start, 3), "start": start}

    def _finish_saving(self) -> None:
        self._report_saved(self.saver.finish())

    def _report_saved(self, path: Path | None) -> None:
        if path is not None:
            written = round(time.perf_counter() - self._saving.pop("start"), 3)
            self.callbacks.log("checkpoint", {**self._saving, "path": str(path), "written_seconds": written})

    def _step(self, batch: StepBatch) -> tuple[dict, bool]:
        """One optimizer step: its record, and whether a rank was asked to stop."""
        progress = self.progress
        # One collective of integers holds all that the ranks must agree on.
        counts = [batch.num_targets, batch.num_tokens, batch.fingerprint, batch.substituted]
        counts = [count * (self.mesh.tensor_rank == 0) for count in counts]  # tensor ranks read the same data
        num_targets, num_tokens, fingerprint, substituted, stop, ended, failed, found, errors = sum_over_ranks(
            [*counts, self._signals.requested, *self.saver.status(), *self.bad_data.counts(batch.error)]
        )
        step = progress.step + 1
        path, trouble = self.saver.advance(ended, failed)
        self._report_saved(path)
        if trouble:
            self.callbacks.event(progress.step, trouble)
        self._read_again = self.bad_data.agree(found, errors, batch.error, step)
        self.bad_data.count_substitutes(substituted, batch.cursor - progress.cursor)
        torch.manual_seed((self.run_options.seed * 1_000_003 + step) * 65_537 + self.mesh.rank)  # dropout
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        for number, micro_batch in enumerate(batch.micro_batches, start=1):
            is_last = number == len(batch.micro_batches)
            inputs = self._inputs(micro_batch, num_targets, step)
            loss_sum += self.engine.forward_backward(inputs, max(1, num_targets), is_last)
        learning_rate = self._learning_rate(step)
        grad_norm = self.engine.step(learning_rate, step)
        torch.distributed.all_reduce(loss_sum, group=self.mesh.data_group)
        progress.step, progress.cursor, progress.tokens = step, batch.cursor, progress.tokens + num_tokens
        progress.substituted += substituted
        progress.quarantine = sorted(self.bad_data.names)
        record = {
            "step": step,
            "loss": float(loss_sum) / max(1, num_targets),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "tokens": num_tokens,
            "batch_fingerprint": f"{fingerprint:016x}",
        }
        return record, bool(stop)

    def _inputs(self, micro_batch: dict[str, np.ndarray], num_targets: int, step: int) -> Batch:
        """The model's arguments; the terms that are added to the loss of training, but not of an evaluation, too."""
        added = {name: weight for name, weight in asdict(self.job.config.loss).items() if weight}
        of_job = self.job.loss_inputs(micro_batch, num_targets, self.job.batch_sizes.size_at(step)[0])
        return to_device(micro_batch, self.mesh.device) | of_job | added

    def _learning_rate(self, step: int) -> float:
        options = self.optimizer
        return learning_rate_at(
            step,
            peak=options.learning_rate,
            schedule=options.schedule,
            warmup_steps=options.warmup_steps,
            lr_decay_steps=options.lr_decay_steps or self.run_options.steps,
            min_lr_ratio=options.min_lr_ratio,
            lr_decay_ratio=options.lr_decay_ratio,
        )

    def _report(self, record: dict, timer: StepTimer) -> None:
        step_seconds, data_seconds, tokens_per_second = timer.means()
        flops = tokens_per_second * self.job.flops_per_token / self.mesh.world_size
        self.callbacks.log(
            "train",
            {
                "step": record["step"],
                "loss": record["loss"],
                "grad_norm": record["grad_norm"],
                "learning_rate": record["learning_rate"],
                "tokens": self.progress.tokens,
                "samples": self.progress.cursor,
                "batch_fingerprint": record["batch_fingerprint"],
                "substituted": self.progress.substituted,
                "step_seconds": round(step_seconds, 6),
                "data_seconds": round(data_seconds, 6),
                "tokens_per_second": round(tokens_per_second, 1),
                "tflops_per_device": round(flops / 1e12, 6),
                "mfu": round(flops / self.peak_flops, 4) if self.peak_flops else None,
                "peak_memory_bytes": peak_memory(self.mesh.device),
            },
        )

    def _evaluate(self) -> bool:
        """Evaluates, and reports it. Whether a callback asks the run to end."""
        assert self.job.evaluate is not None
        start, step = time.perf_counter(), self.progress.step
        self.engine.module.eval()
        self.scores = self.job.evaluate()
        self.engine.module.train()
        if self.job.validation_readers:
            self.bad_data.check([reader.error for reader in self.job.validation_readers], step)
        seconds = round(time.perf_counter() - start, 3)
        self._evaluated_step = step
        self.callbacks.log("eval", {"step": step, **self.scores, "seconds": seconds})
        return self.callbacks.evaluate(step, self.scores)
