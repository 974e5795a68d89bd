"""The best checkpoint of a run by one of its metrics, and early stopping."""

import shutil
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from ingot.launcher.training.callbacks.callback import Callback, Callbacks
from ingot.parallel import checkpoint
from ingot.parallel.checkpoint.run_folder import set_aside
from ingot.parallel.engines.engine import Engine


class BestCheckpoint(Callback):
    """Keeps a checkpoint of the step with the best value of a metric in `folder`. It has no optimizer state.

    Args:
        metric: name of the score.
        step: optimizer steps done. Checkpoints of later steps are removed, since the run repeats these steps.
        metadata: what the checkpoint contains in addition to its step and scores.
        lower_is_better: whether the lowest value of the metric is the best one.
        keep_later: checkpoints of later steps get another name instead: they are of a branch that the run has left.

    Attributes:
        step, scores: of the best evaluation; 0 and empty before the first one.
        is_new: whether the last evaluation was the best.
    """

    def __init__(
        self,
        folder: Path,
        metric: str,
        engine: Engine,
        step: int,
        metadata: dict,
        *,
        lower_is_better: bool,
        keep_later: bool = False,
    ):
        self.metric, self.engine, self.metadata, self.lower_is_better = metric, engine, metadata, lower_is_better
        self.step, self.scores, self.is_new = 0, dict[str, float](), False
        if engine.mesh.is_main:
            with suppress(OSError):
                self._leave_later(folder, step, keep=keep_later)
            self._read(folder, step)
        found: list = [self.step, self.scores]
        dist.broadcast_object_list(found)
        self.step, self.scores = found
        self._saver = checkpoint.Saver(folder, keep=1)

    @staticmethod
    def _leave_later(folder: Path, step: int, *, keep: bool) -> None:
        if keep:
            set_aside(folder, step, damaged=(), keep=lambda path: True)
        for path in checkpoint.committed(folder):
            if int(path.name[5:]) > step:
                shutil.rmtree(path)

    def _read(self, folder: Path, step: int) -> None:
        for path in checkpoint.committed(folder):
            try:
                manifest = checkpoint.read_manifest(path)
            except checkpoint.CheckpointError:
                continue  # it is damaged; the next evaluation writes another one
            if manifest["step"] <= step and self.metric in manifest.get("scores", {}):
                self.step, self.scores = manifest["step"], manifest["scores"]
                return

    def on_evaluate(self, step: int, scores: dict[str, float]) -> bool:
        self.is_new = not self.scores or self._is_better(scores[self.metric], self.scores[self.metric])
        if self.is_new:
            self.step, self.scores = step, dict(scores)
            weights = [shard for shard in self.engine.shards() if shard.name.startswith("model/")]
            self._saver.begin(weights, step=step, metadata={**self.metadata, "scores": self.scores})
            self._saver.finish()
        return False

    def _is_better(self, value: float, before: float) -> bool:
        return value < before if self.lower_is_better else value > before


class EarlyStopping(Callback):
    """Ends a run after `patience` evaluations without a better score, `every` steps apart. It comes after `best`.

    A run that has ended so, and is started again, has ended already.
    """

    def __init__(self, best: BestCheckpoint, callbacks: Callbacks, *, patience: int, every: int):
        self.best, self.callbacks, self.patience, self.every = best, callbacks, patience, every
        self._has_said_so = False

    def on_train_start(self, step: int) -> bool:
        return bool(self.best.scores) and self._is_over(step // self.every * self.every)

    def on_evaluate(self, step: int, scores: dict[str, float]) -> bool:
        return not self.best.is_new and self._is_over(step)

    def _is_over(self, step: int) -> bool:
        is_over = step - self.best.step >= self.patience * self.every
        if is_over and not self._has_said_so:
            self._has_said_so = True
            self.callbacks.event(
                step,
                f"{self.best.metric} has not improved since step {self.best.step}; task.early_stopping_patience is "
                f"{self.patience} evaluations",
            )
        return is_over
