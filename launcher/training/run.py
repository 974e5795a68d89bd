"""One run, whatever it trains: build the job, resume, open the folder, train."""

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
from ingot.launcher.training.resume import check_same_data, choose_start, resume
from ingot.launcher.training.setup import RunLock, checkpoint_metadata, folder_of, open_callbacks, open_folder
from ingot.launcher.training.trainer import Trainer
from ingot.parallel.mesh import Mesh

T = TypeVar("T", bound=Callback)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code, and the callbacks that listened."""

    code: int
    callbacks: list[Callback]

    def find(self, kind: type[T]) -> T:
        return next(callback for callback in self.callbacks if isinstance(callback, kind))


def run(config: TrainConfig | FinetuneConfig, mesh: Mesh, run_lock: RunLock, build: Callable[[], Job]) -> Outcome:
    """Trains the job that `build` makes. Each rank calls it.

    Raises:
        BadInput: anything that the user can correct, before the run's folder is changed.
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
    """The job, with the state of the checkpoint that it goes on from; its progress; and what a log says about it."""
    with bad_input():
        starts = choose_start(config.run.resume, folder_of(config))
        job = build()
        check_same_data(job.data_stamp)
        progress, notes = resume(
            job.engine,
            starts,
            job.data_stamp,
            asdict(job.model),
            allow_changed=job.allow_changed,
            init_from=job.init_from,
        )
    return job, progress, notes


def _train(job: Job, mesh: Mesh, run_lock: RunLock, progress: Progress, notes: list[str]) -> Outcome:
    folder = folder_of(job.config)
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
