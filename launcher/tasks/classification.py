"""One label of a set for each text or pair of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.data.tasks.examples import Example
from ingot.data.tasks.sequence_classification import read_classification
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.tasks.confusion_matrix import draw_confusion
from ingot.launcher.tasks.metrics import classification_report, classification_scores
from ingot.launcher.tasks.task_kind import Head, TaskKind, indices, softmax

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Classification(TaskKind):
    """A prediction is the name of a label."""

    name = "classification"
    summary = "one label of a set for each text or pair"
    metrics = ("accuracy", "loss", "f1", "f1_macro", "matthews", "precision", "recall")
    head = Head("sequence", "classes")
    has_label_set = True
    label_smoothing = adversarial = distillation = True

    def read(self, path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
        return read_classification(path, settings, tokenizer, labelled=labelled)

    def prediction(self, record: Any, windows: list[tuple[Example, np.ndarray]], data: TaskData) -> str:
        ((_, logits),) = windows
        return data.labels[int(logits.argmax())]

    def truth(self, data: TaskData) -> list[str]:
        return [data.labels[int(example.target)] for example in data.examples]

    def scores(self, predicted: list[str], true: list[str], labels: list[str]) -> dict[str, float]:
        return classification_scores(indices(predicted, labels), indices(true, labels), labels)

    def report(self, predicted: list[str], true: list[str], labels: list[str]) -> str:
        return classification_report(indices(predicted, labels), indices(true, labels), labels)

    def figures(self, predicted: list[str], true: list[str], labels: list[str]) -> dict[str, Figure]:
        return {"confusion": draw_confusion(predicted, true, labels)}

    def probabilities(self, output: np.ndarray, labels: list[str]) -> dict[str, float]:
        return dict(zip(labels, softmax(output), strict=True))
