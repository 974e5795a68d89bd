"""A pretraining run step by step, for a notebook."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from torch import nn

from ingot.launcher.config.parser import parse
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.runtime.exit_codes import bad_input
from ingot.launcher.training.bad_data import BadDataWatch
from ingot.launcher.training.branch import Branch, choose_branch
from ingot.launcher.training.callbacks.callback import Callbacks
from ingot.launcher.training.pretrain_run import files_of, make_job, open_data
from ingot.launcher.training.run import build_and_resume
from ingot.launcher.training.run_length import with_steps
from ingot.launcher.training.setup import (
    RunLock,
    checkpoint_metadata,
    open_folder,
    rank_group,
    run_folder,
    start_mesh,
)
from ingot.launcher.training.train_step import TrainStep
from ingot.parallel import checkpoint


class Training:
    """A pretraining run whose steps you take yourself, in one process.

        with ingot.Training("configs/demo.yaml", **{"run.steps": 10, "run.name": "notebook"}) as training:
            record = training.step()        # step, loss, grad_norm, learning_rate, tokens, batch_fingerprint
            scores = training.evaluate()
            training.save()                 # a checkpoint that every command opens and resumes from

    It computes what `launcher/pretrain.py` computes with the same configuration, step for step. It starts where
    that command starts: at the newest intact checkpoint of the run, or at step 0. It writes nothing before `save`.

    Args:
        config: a YAML file.
        options: dotted options; they override those of the file.

    Raises:
        BadInput: the configuration or the data have a mistake that the user can correct.
    """

    def __init__(self, config: str | Path, **options: object):
        with bad_input():
            argv = [word for name, value in options.items() for word in (f"--{name}", str(value))]
            self.config = parse(TrainConfig, ["--config", str(config), *argv], self.__doc__ or "")
            self.config.check(1)
        with ExitStack() as stack:
            watchdog = stack.enter_context(rank_group(self.config))
            with bad_input():
                self._run_lock = RunLock(run_folder(self.config))
                stack.callback(self._run_lock.close)
                data = open_data(self.config)
                self.config = with_steps(self.config, data.train)
                mesh, self.config = start_mesh(self.config, watchdog, files_of(self.config, data))
            self._job, self._resumed = build_and_resume(self.config, lambda: make_job(self.config, mesh, data))
            self.progress, self.notes = self._resumed.progress, self._resumed.notes
            self._branch: Branch | None = None  # chosen before the first checkpoint is written
            for reader in (self._job.reader, *self._job.validation_readers):
                stack.callback(reader.close)
            bad_data = BadDataWatch(
                self._job.quarantine, Callbacks(), None, max_bad_fraction=self._job.max_bad_fraction
            )
            bad_data.start(self.progress.quarantine)
            self._train_step = TrainStep(self._job, self.progress, bad_data)
            self._steps = self._train_step.steps(self.config.run.num_steps)
            stack.callback(self._steps.close)
            self._stack = stack.pop_all()

    @property
    def model(self) -> nn.Module:
        """The module. With an engine that shards parameters, it holds the part of this process."""
        return self._job.engine.module

    def step(self) -> dict:
        """Takes the next optimizer step. Returns its record: step, loss, grad_norm, learning_rate, tokens,
        batch_fingerprint.

        Raises:
            StopIteration: the run has reached `run.steps`.
        """
        agreed = next(self._steps)
        self.model.train()
        return self._train_step.update(agreed).read()

    def evaluate(self) -> dict:
        """Evaluates on `data.validation`. Returns the scores: loss (nats per target), perplexity and others.

        Raises:
            ValueError: the configuration has no validation corpora.
        """
        if self._job.evaluate is None:
            raise ValueError("data.validation is empty; name a corpus to evaluate on")
        self.model.eval()
        return self._job.evaluate()

    def save(self) -> Path:
        """Writes a checkpoint of this step into the run's folder, and returns its path."""
        mesh = self._job.engine.mesh
        open_folder(self.config, self._job.tokenizer, mesh, self._run_lock)
        if self._branch is None:
            self._branch = choose_branch(self.config, mesh, self._resumed)
        metadata = checkpoint_metadata(self._job, mesh) | {"lineage": self._branch.lineage}
        return checkpoint.save(
            run_folder(self.config) / "checkpoints",
            self._job.engine.shards(),
            step=self.progress.step,
            metadata=self.progress.to_manifest() | metadata,
            keep=self.config.run.keep_checkpoints,
            source=self._branch.source,
        )

    def close(self) -> None:
        """Stops the threads that read ahead, and the process group."""
        self._stack.close()

    def __enter__(self) -> "Training":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
