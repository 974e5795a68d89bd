"""The training loop, for pretraining and fine-tuning. They differ only in the job.

One iteration: take the next batch (step_ahead.py), do a step (train_step.py), report, and at intervals evaluate and
save.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import torch

from ingot.launcher.runtime import exit_codes
from ingot.launcher.runtime.garbage_collection import GarbageCollection
from ingot.launcher.runtime.stop_signals import StopSignals
from ingot.launcher.training.bad_data import BadDataWatch, Unreadable
from ingot.launcher.training.callbacks.callback import Callbacks
from ingot.launcher.training.job import Job
from ingot.launcher.training.progress import Progress
from ingot.launcher.training.step_ahead import AgreedStep
from ingot.launcher.training.step_timer import StepTimer, peak_memory
from ingot.launcher.training.train_step import StepRecord, TrainStep
from ingot.model.costs.flops import peak_flops
from ingot.parallel import checkpoint


class Trainer:
    """Trains a job until `job.config.run.steps`.

    Args:
        job: model, data and settings.
        saver: writes the checkpoints.
        progress: of the run; it is updated.
        callbacks: are told of each step, record and evaluation.
        bad_data: handles damaged data.
        metadata: what the checkpoints contain in addition to the progress, such as the configuration.
        restore_folder: writes what the folder of the run has beside checkpoints and logs. It is called on rank 0 if the
            folder is gone.
        evaluate_first: whether to evaluate before the first step, because the best checkpoint was one of a later step
            on another branch.
    """

    def __init__(
        self,
        job: Job,
        saver: checkpoint.Saver,
        *,
        progress: Progress,
        callbacks: Callbacks,
        bad_data: BadDataWatch,
        metadata: dict,
        restore_folder: Callable[[], None],
        evaluate_first: bool = False,
    ):
        self.job, self.engine, self.progress = job, job.engine, progress
        self.callbacks, self.bad_data, self.metadata = callbacks, bad_data, metadata
        self.run_options, self.mesh = job.config.run, job.engine.mesh
        self.train_step = TrainStep(job, progress, bad_data, self._votes)
        self.reads_late = self.mesh.device.type != "cpu"
        self._unread: deque[tuple[StepRecord, dict | None]] = deque()  # results on the device, and figures to log
        dtype = torch.bfloat16 if job.config.parallel.precision == "bf16" else torch.float32
        self.peak_flops = (
            peak_flops(torch.cuda.get_device_name(self.mesh.device), dtype) if self.mesh.device.type == "cuda" else None
        )
        self.saver, self._restore_folder = saver, restore_folder
        self._evaluate_first = evaluate_first
        self._saving: dict = {}  # of the checkpoint that is being written
        self._signals = StopSignals()
        self._garbage = GarbageCollection(job.config.run.gc_every)
        self._saved_step = progress.step
        self._evaluated_step = -1
        self.scores: dict = {}  # of the last evaluation

    def run(self) -> int:
        """Trains until the last step or a request to stop. Returns the exit code.

        Raises:
            BadInput: data are damaged and data.strict is true, or a checkpoint cannot be written.
        """
        try:
            with self._signals, self._garbage:
                return self._run()
        except Unreadable as problem:  # between two steps, on all ranks
            self.save()
            self._finish_saving()
            if problem.code == exit_codes.BAD_INPUT:
                raise exit_codes.BadInput(str(problem)) from None
            self.callbacks.event(self.progress.step, str(problem))
            return problem.code
        except checkpoint.CheckpointError as problem:  # raised on all ranks; older checkpoints are unchanged
            raise exit_codes.BadInput(str(problem)) from None

    def _run(self) -> int:
        run, progress, timer = self.run_options, self.progress, StepTimer()
        self.engine.module.train()
        if self.job.evaluate and self._evaluate_first:
            self._evaluate()
        last = progress.step if self.callbacks.train_start(progress.step) else run.num_steps
        # Closed before anything else is agreed on: the ranks leave together the step that is being agreed on ahead.
        with closing(self.train_step.steps(last)) as steps:
            for agreed in steps:
                data_seconds = timer.lap()
                stop = self._advance_save(agreed)
                record = self.train_step.update(agreed)
                timer.add(data_seconds, record.num_tokens, agreed.flops)
                self.callbacks.step_end(progress.step)
                self._garbage.step_end(progress.step)
                is_last = stop or progress.step == run.num_steps
                is_logged = progress.step % run.log_every == 0 or is_last
                is_evaluated = bool(self.job.evaluate and run.eval_every) and progress.step % run.eval_every == 0
                is_saved = bool(run.save_every) and progress.step % run.save_every == 0
                self._unread.append((record, self._figures(timer) if is_logged else None))
                if not self._report(all_of_them=is_last or is_evaluated or is_saved):
                    self._finish_saving()  # of an earlier step
                    return exit_codes.GIVE_UP
                is_over = self._evaluate() if is_evaluated else False
                if is_saved:
                    self.save()
                if stop:
                    self.save()
                    self._finish_saving()
                    self.callbacks.event(progress.step, "stopped on request; start again to continue")
                    return exit_codes.REQUEUE
                if is_over:
                    break
                timer.lap()  # an evaluation or a save does not count as time of a step
        self.save()
        if self.job.evaluate and self._evaluated_step != progress.step:
            self._evaluate()
        self._finish_saving()
        self.callbacks.train_end(progress.step, self.scores)
        unwritten = {n: why for n, why in self.callbacks.failing.items() if n.endswith(("on_evaluate", "on_train_end"))}
        if unwritten:
            raise exit_codes.BadInput(
                f"the model is saved, but results cannot be written: {'; '.join(unwritten.values())}"
            )
        return exit_codes.DONE

    def save(self) -> None:
        """Starts to write a checkpoint of the current state. Training waits only for a copy in host memory."""
        progress = self.progress
        if self._saved_step == progress.step:
            return
        self._finish_saving()
        if self.mesh.is_main and not (self.saver.folder.parent / "config.yaml").exists():
            with suppress(OSError):  # the save reports it
                self._restore_folder()
                self.callbacks.event(progress.step, "the folder of the run was gone, and was made again")
        start = time.perf_counter()
        self.saver.begin(
            self.engine.shards(),
            step=progress.step,
            metadata=progress.to_manifest() | self.metadata,
        )
        self._saved_step = progress.step
        self._saving = {"step": progress.step, "seconds": round(time.perf_counter() - start, 3), "start": start}

    def _finish_saving(self) -> None:
        self._report_saved(self.saver.finish())

    def _report_saved(self, path: Path | None) -> None:
        if path is not None:
            written = round(time.perf_counter() - self._saving.pop("start"), 3)
            self.callbacks.log("checkpoint", {**self._saving, "path": str(path), "written_seconds": written})

    def _votes(self) -> list[int]:
        """What this rank tells the others with each step: whether it was asked to stop, and how far its save is."""
        return [self._signals.requested, *self.saver.status()]

    def _advance_save(self, agreed: AgreedStep) -> bool:
        """Goes on with a save whose phase all ranks have ended. Returns whether a rank was asked to stop."""
        stop, ended, failed = agreed.votes
        path, trouble = self.saver.advance(ended, failed)
        self._report_saved(path)
        if trouble:
            self.callbacks.event(self.progress.step, trouble)
        return bool(stop) or (self.mesh.world_size == 1 and self._signals.requested)

    def _figures(self, timer: StepTimer) -> dict:
        """What a record of the present step has beside the results that are still on the device."""
        step_seconds, data_seconds, tokens_per_second, needed = timer.means()
        flops, needed = (each / self.mesh.world_size for each in (tokens_per_second * self.job.flops_per_token, needed))
        return {
            "tokens": self.progress.tokens,
            "samples": self.progress.cursor,
            "substituted": self.progress.substituted,
            "step_seconds": round(step_seconds, 6),
            "data_seconds": round(data_seconds, 6),
            "tokens_per_second": round(tokens_per_second, 1),
            "tflops_per_device": round(flops / 1e12, 6),
            "mfu": round(flops / self.peak_flops, 4) if self.peak_flops else None,
            "needed_tflops_per_device": round(needed / 1e12, 6),
            "needed_mfu": round(needed / self.peak_flops, 4) if self.peak_flops else None,
            "peak_memory_bytes": peak_memory(self.mesh.device),
        }

    def _report(self, all_of_them: bool) -> bool:
        """Reads the results of the steps so far and logs those that are due.

        The last step is left for the next time unless `all_of_them`: a device has then begun the next step before the
        host waits for the results of this one.

        Returns:
            False if a loss or a gradient is not finite. Nothing was saved since.
        """
        while len(self._unread) > (1 if self.reads_late and not all_of_them else 0):
            record, figures = self._unread.popleft()
            results = record.read()
            if not math.isfinite(results["loss"]) or not math.isfinite(results["grad_norm"]):
                self.callbacks.event(
                    record.step, "the loss or the gradient is not finite; this step is not saved", loss=results["loss"]
                )
                return False
            if figures is not None:
                order = ("step", "loss", "grad_norm", "learning_rate", "tokens", "samples", "batch_fingerprint")
                line = results | figures
                self.callbacks.log("train", {key: line.pop(key) for key in order} | line)
        return True

    def _evaluate(self) -> bool:
        """Evaluates, and logs the scores. Returns whether a callback asks the run to end."""
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
