"""The best checkpoint of a run by one of its scores, and when to stop looking for a better one."""

import shutil
from pathlib import Path

import torch.distributed as dist

from ingot.launcher.training.logger import Metrics
from ingot.launcher.training.trainer import Progress
from ingot.parallel import checkpoint
from ingot.parallel.engines.engine import Engine

LOWER_IS_BETTER = ("loss", "perplexity", "mean_squared_error")


class Best:
    """Keeps the weights with the best score in `folder`, as a checkpoint of its own. Each rank calls it.

    Args:
        score: name of the score.
        patience: evaluations without a better one after which it is enough; 0 is never.
        every: steps between two evaluations.
        about: what the checkpoint shall say besides.
    """

    def __init__(
        self,
        folder: Path,
        score: str,
        engine: Engine,
        metrics: Metrics,
        progress: Progress,
        *,
        patience: int,
        every: int,
        about: dict,
    ):
        self.folder, self.score, self.engine, self.metrics, self.progress = folder, score, engine, metrics, progress
        self.patience, self.every, self.about = patience, every, about
        self.step, self.scores = 0, {}
        self.is_new = False
        for path in checkpoint.committed(folder):
            try:
                found = checkpoint.read_manifest(path)
            except checkpoint.CheckpointError:
                continue  # the next evaluation makes another
            if found["step"] <= progress.step:
                self.step, self.scores = found["step"], found["scores"]
                break
        dist.barrier()
        if engine.mesh.is_main:  # of steps that are to come again
            for path in checkpoint.committed(folder):
                if int(path.name[5:]) > progress.step:
                    shutil.rmtree(path)
        dist.barrier()
        self._saver = checkpoint.Saver(folder, keep=1)

    def __call__(self, scores: dict) -> bool:
        """Takes the scores of the step that the run is at; whether it has looked long enough for better ones."""
        self.is_new = not self.scores or self._better(scores[self.score], self.scores[self.score])
        if self.is_new:
            self.step, self.scores = self.progress.step, dict(scores)
            weights = [shard for shard in self.engine.shards() if shard.name.startswith("model/")]
            self._saver.begin(weights, step=self.step, about={**self.about, "scores": self.scores})
            self._saver.finish()
            return False
        enough = bool(self.patience) and self.progress.step - self.step >= self.patience * self.every
        if enough:
            self.metrics.event(
                self.progress.step,
                f"no better {self.score} since step {self.step}; task.early_stopping_patience is {self.patience} evaluations",
            )
        return enough

    def _better(self, value: float, before: float) -> bool:
        return value < before if self.score in LOWER_IS_BETTER else value > before
