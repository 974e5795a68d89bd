"""A run of any kind: build the job, resume, open the folder, train."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.runtime.exit_codes import bad_input
from ingot.launcher.training.bad_data import BadDataWatch
from ingot.launcher.training.callbacks.callback import Callback
from ingot.launcher.training.job import Job, RunContext
from ingot.launcher.training.progress import Progress
from ingot.launcher.training.resume import check_same_data, checkpoints_to_try, resume
from ingot.launcher.training.setup import RunLock, checkpoint_metadata, open_callbacks, open_folder, run_folder
from ingot.launcher.training.trainer import Trainer
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
        job, progress, notes = build_and_resume(config, build)
        try:
            return _train(job, mesh, run_lock, progress, notes)
        finally:
            for reader in (job.reader, *job.validation_readers):
                reader.close()
    finally:
        run_lock.close()


def build_and_resume(config: TrainConfig | FinetuneConfig, build: Callable[[], Job]) -> tuple[Job, Progress, list[str]]:
    """Builds the job and loads the checkpoint to resume from. Returns the job, its progress, and notes for the log."""
    with bad_input():
        candidates = checkpoints_to_try(config.run.resume, run_folder(config))
        job = build()
        check_same_data(job.data_stamp)
        progress, notes = resume(
            job.engine,
            candidates,
            job.data_stamp,
            asdict(job.model),
            allow_changed=job.allow_changed,
            init_from=job.init_from,
        )
    return job, progress, notes


def _train(job: Job, mesh: Mesh, run_lock: RunLock, progress: Progress, notes: list[str]) -> Outcome:
    folder = run_folder(job.config)
    open_folder(job.config, job.tokenizer, mesh, run_lock)
    callbacks = open_callbacks(job.config, mesh, progress, list(job.messages), notes)
    try:
        bad_data = BadDataWatch(job.quarantine, callbacks, folder, max_bad_fraction=job.max_bad_fraction)
        bad_data.start(progress.quarantine)
        metadata = checkpoint_metadata(job.config, job.data_stamp, job.tokenizer, mesh) | job.metadata
        callbacks.add(*job.callbacks(RunContext(folder, progress, callbacks, metadata)))
        trainer = Trainer(job, folder, progress=progress, callbacks=callbacks, bad_data=bad_data, metadata=metadata)
        return Outcome(trainer.run(), callbacks.callbacks)
    finally:
        callbacks.close()
