"""What a fine-tuning run writes of its results: predictions and a report of the best step, its scores, and figures."""

import json

from ingot.data.tasks.tasks import TaskData
from ingot.launcher.finetuning.plots import draw_confusion, draw_curves
from ingot.launcher.finetuning.predictions import report, truth
from ingot.launcher.training.callbacks.best_checkpoint import BestCheckpoint
from ingot.launcher.training.callbacks.callback import Callback
from ingot.launcher.training.job import RunContext


class PredictionFiles(Callback):
    """Writes predictions.jsonl and report.txt of the best step, and shows a confusion matrix. It stands behind `best`.

    Args:
        predicted: the predictions of the last evaluation, in the order of `data`; the evaluation fills it.
    """

    def __init__(self, context: RunContext, best: BestCheckpoint, kind: str, data: TaskData, predicted: list):
        self.context, self.best, self.kind, self.data, self.predicted = context, best, kind, data, predicted

    def on_evaluate(self, step: int, scores: dict[str, float]) -> bool:
        if not self.best.is_new or not self.predicted:
            return False
        folder, data = self.context.folder, self.data
        true = truth(self.kind, data, data.labels)
        with (folder / "predictions.jsonl").open("w") as file:
            for source, mine, right in zip(data.sources, self.predicted, true, strict=True):
                line = {"where": source.where, "predicted": mine, "true": right}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if table := report(self.kind, self.predicted, true, data.labels):
            (folder / "report.txt").write_text(table)
        if self.kind == "classification":
            self.context.callbacks.figure("confusion", draw_confusion(self.predicted, true, data.labels), step)
        return False


class BestScores(Callback):
    """At the end, says the best scores, writes them to best.json, and shows the learning curves."""

    def __init__(self, context: RunContext, best: BestCheckpoint):
        self.context, self.best = context, best

    def on_train_end(self, step: int, scores: dict[str, float]) -> None:
        if not self.best.scores:
            return
        folder, best = self.context.folder, self.best
        shown = ", ".join(f"{name} {value:.4f}" for name, value in best.scores.items())
        self.context.callbacks.message(f"done: best at step {best.step}: {shown}")
        (folder / "best.json").write_text(json.dumps({"step": best.step, **best.scores}) + "\n")
        self.context.callbacks.figure("curves", draw_curves(folder / "metrics.jsonl"), step)
