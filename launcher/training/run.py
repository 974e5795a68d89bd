"""A run of any kind: build the job, resume, open the folder, train."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch

from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.runtime.exit_codes import bad_input
from ingot.launcher.training.bad_data import BadDataWatch
from ingot.launcher.training.branch import choose_branch
from ingot.launcher.training.callbacks.callback import Callback
from ingot.launcher.training.callbacks.registry import observers
from ingot.launcher.training.callbacks.timeouts import CollectiveTimeouts
from ingot.launcher.training.job import Job, RunContext
from ingot.launcher.training.resume import Resumed, checkpoints_to_try, resume
from ingot.launcher.training.setup import (
    RunLock,
    checkpoint_metadata,
    open_callbacks,
    open_folder,
    restore_folder,
    run_folder,
)
from ingot.launcher.training.trainer import Trainer
from ingot.model.attention_implementation import notes as attention_notes
from ingot.parallel import checkpoint
from ingot.parallel.mesh import Mesh

T = TypeVar("T", bound=Callback)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code and its callbacks."""

    code: int
    callbacks: list[Callback]

    def find(self, kind: type[T]) -> T:
        """The callback of this class."""
        return next(callback for callback in self.callbacks if isinstance(callback, kind))


def run(config: TrainConfig | FinetuneConfig, mesh: Mesh, run_lock: RunLock, build: Callable[[], Job]) -> Outcome:
    """Trains the job that `build` makes. Each rank calls it.

    Raises:
        BadInput: there is a mistake that the user can correct. The folder of the run is unchanged.
    """
    try:
        job, resumed = build_and_resume(config, build)
        try:
            return _train(job, mesh, run_lock, resumed)
        finally:
            for reader in (job.reader, *job.validation_readers):
                reader.close()
    finally:
        run_lock.close()


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turns a failed allocation into a ValueError: while a job is built, its options ask for more than there is."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"there is not enough memory for the model and its optimizer ({reason}); lower the sizes of model or "
            f"batch, or spread them over more devices: run.dry_run says what they need"
        ) from error


def build_and_resume(config: TrainConfig | FinetuneConfig, build: Callable[[], Job]) -> tuple[Job, Resumed]:
    """Builds the job and loads the checkpoint to resume from."""
    with bad_input(), enough_memory():
        candidates = checkpoints_to_try(config.run.resume, run_folder(config))
        job = build()
        resumed = resume(
            job.engine,
            candidates,
            job.data_stamp,
            asdict(job.model),
            allow_changed=job.allow_changed,
            init_from=job.init_from,
            is_told=config.run.resume not in ("auto", "never"),
        )
    return job, resumed


def _train(job: Job, mesh: Mesh, run_lock: RunLock, resumed: Resumed) -> Outcome:
    folder, progress = run_folder(job.config), resumed.progress
    open_folder(job.config, job.tokenizer, mesh, run_lock)
    branch = choose_branch(job.config, mesh, resumed)
    notes = [*resumed.notes, *branch.notes]
    messages = [*job.messages, *attention_notes(job.model, mesh.device, job.is_packed)]
    callbacks = open_callbacks(job.config, mesh, progress, messages, notes)
    try:
        bad_data = BadDataWatch(job.quarantine, callbacks, folder, max_bad_fraction=job.max_bad_fraction)
        bad_data.start(progress.quarantine)
        metadata = checkpoint_metadata(job, mesh) | {"lineage": branch.lineage}
        if progress.step and progress.step >= job.config.run.num_steps:
            callbacks.message(
                f"nothing to train: the run has done {progress.step} steps, and is to have {job.config.run.num_steps}; "
                f"raise run.steps (or run.tokens, or the epochs) to go on"
            )
        callbacks.add(CollectiveTimeouts(mesh, job.config.run))
        callbacks.add(*observers(job.config.run, folder, job.engine, callbacks))
        callbacks.add(*job.callbacks(RunContext(folder, progress, callbacks, metadata, branch.is_new)))
        saver = checkpoint.Saver(
            folder / "checkpoints",
            job.config.run.keep_checkpoints,
            source=branch.source,
            before_waiting=lambda: mesh.set_timeouts("long"),
        )
        trainer = Trainer(
            job,
            saver,
            progress=progress,
            callbacks=callbacks,
            bad_data=bad_data,
            metadata=metadata,
            restore_folder=lambda: restore_folder(job.config, job.tokenizer),
            evaluate_first=branch.is_new and progress.step > 0,
        )
        return Outcome(trainer.run(), callbacks.callbacks)
    finally:
        callbacks.close()
