"""The results that a fine-tuning run writes: predictions, report and scores of the best step, and figures."""

import json

from ingot.data.tasks.task_data import TaskData
from ingot.launcher.finetuning.plots import draw_curves
from ingot.launcher.tasks.task_kind import TaskKind
from ingot.launcher.training.callbacks.best_checkpoint import BestCheckpoint
from ingot.launcher.training.callbacks.callback import Callback
from ingot.launcher.training.job import RunContext


class PredictionFiles(Callback):
    """Writes predictions.jsonl and report.txt of the best step, and logs the figures. It comes after `best`.

    Args:
        predicted: the predictions of the last evaluation, in the order of `data`. The evaluation fills this list.
    """

    def __init__(self, context: RunContext, best: BestCheckpoint, kind: TaskKind, data: TaskData, predicted: list):
        self.context, self.best, self.kind, self.data, self.predicted = context, best, kind, data, predicted

    def on_evaluate(self, step: int, scores: dict[str, float]) -> bool:
        if not self.best.is_new or not self.predicted:
            return False
        folder, data = self.context.folder, self.data
        true = self.kind.truth(data)
        with (folder / "predictions.jsonl").open("w") as file:
            for record, prediction, label in zip(data.records, self.predicted, true, strict=True):
                line = {"where": record.where, "predicted": prediction, "true": label}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if table := self.kind.report(self.predicted, true, data.labels):
            (folder / "report.txt").write_text(table)
        for name, figure in self.kind.figures(self.predicted, true, data.labels).items():
            self.context.callbacks.figure(name, figure, step)
        return False


class BestScores(Callback):
    """At the end of training, reports the best scores, writes them to best.json, and logs a figure of the curves."""

    def __init__(self, context: RunContext, best: BestCheckpoint):
        self.context, self.best = context, best

    def on_train_end(self, step: int, scores: dict[str, float]) -> None:
        if not self.best.scores:
            return
        folder, best = self.context.folder, self.best
        shown = ", ".join(f"{name} {value:.4f}" for name, value in best.scores.items())
        self.context.callbacks.message(f"done: best {best.metric} at step {best.step}: {shown}")
        (folder / "best.json").write_text(json.dumps({"step": best.step, **best.scores}) + "\n")
        self.context.callbacks.figure("curves", draw_curves(folder / "metrics.jsonl"), step)
