"""Any number of labels of a set for each text or pair of texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ingot.data.tasks.examples import Example
from ingot.data.tasks.sequence_classification import read_multi_label
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.tasks.metrics import multi_label_report, multi_label_scores
from ingot.launcher.tasks.task_kind import Head, TaskKind, rounded


class MultiLabel(TaskKind):
    """A prediction is a list of names of labels."""

    name = "multi_label"
    summary = "any number of labels of a set for each text or pair"
    metrics = ("f1_micro", "loss", "f1_macro", "accuracy")
    head = Head("sequence", "labels")
    has_label_set = True

    def read(self, path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
        return read_multi_label(path, settings, tokenizer, labelled=labelled)

    def prediction(self, record: Any, windows: list[tuple[Example, np.ndarray]], data: TaskData) -> list[str]:
        ((_, logits),) = windows
        return [label for label, logit in zip(data.labels, logits, strict=True) if logit > 0]

    def truth(self, data: TaskData) -> list[list[str]]:
        targets = [example.target for example in data.examples]
        return [[label for label, on in zip(data.labels, target, strict=True) if on] for target in targets]

    def scores(self, predicted: list[list[str]], true: list[list[str]], labels: list[str]) -> dict[str, float]:
        return multi_label_scores(_indicators(predicted, labels), _indicators(true, labels), labels)

    def report(self, predicted: list[list[str]], true: list[list[str]], labels: list[str]) -> str:
        return multi_label_report(_indicators(predicted, labels), _indicators(true, labels), labels)

    def probabilities(self, output: np.ndarray, labels: list[str]) -> dict[str, float]:
        return dict(zip(labels, rounded(1 / (1 + np.exp(-output.astype(np.float64)))), strict=True))


def _indicators(names: list[list[str]], labels: list[str]) -> np.ndarray:
    """bool [examples, labels]: which labels each example has."""
    return np.array([[label in each for label in labels] for each in names], dtype=bool)
