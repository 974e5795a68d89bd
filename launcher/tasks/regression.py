"""One number or several for each text or pair of texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ingot.data.tasks.examples import Example
from ingot.data.tasks.sequence_classification import read_regression
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.tasks.metrics import regression_scores
from ingot.launcher.tasks.task_kind import Head, TaskKind


class Regression(TaskKind):
    """A prediction is a list of numbers, one for each label column."""

    name = "regression"
    summary = "one number or several for each text or pair"
    metrics = ("spearman", "loss", "pearson", "mean_squared_error")
    lower_is_better = ("loss", "mean_squared_error")
    head = Head("sequence", "regression")

    def read(self, path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
        return read_regression(path, settings, tokenizer, labelled=labelled)

    def prediction(self, record: Any, windows: list[tuple[Example, np.ndarray]], data: TaskData) -> list[float]:
        ((_, values),) = windows
        return [float(value) for value in values]

    def truth(self, data: TaskData) -> list[list[float]]:
        return [[float(value) for value in example.target] for example in data.examples]

    def scores(self, predicted: list[list[float]], true: list[list[float]], labels: list[str]) -> dict[str, float]:
        """The mean over the label columns."""
        columns = zip(np.array(predicted).T, np.array(true).T, strict=True)
        parts = [regression_scores(ours, theirs) for ours, theirs in columns]
        return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
