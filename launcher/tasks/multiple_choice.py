"""Which of several endings follows a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ingot.data.tasks.examples import Example
from ingot.data.tasks.multiple_choice import read_multiple_choice
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.tasks.task_kind import Head, TaskKind, softmax


class MultipleChoice(TaskKind):
    """A prediction is the number of an ending, counted from 0."""

    name = "multiple_choice"
    summary = "which of several endings follows a text"
    text_columns = ("text", "endings")
    metrics = ("accuracy", "loss")
    head = Head("sequence", "choice", num_outputs=1)
    transformers_class = "AutoModelForMultipleChoice"
    label_smoothing = adversarial = distillation = True
    same_teacher_labels = False

    def read(self, path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
        return read_multiple_choice(path, settings, tokenizer, labelled=labelled)

    def record_of(self, texts: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
        """The text, then the endings."""
        if len(columns) > 2:
            return super().record_of(texts, columns)
        return {columns[0]: texts[0], columns[1]: list(texts[1:])}

    def output(self, example: Example, logits: np.ndarray) -> np.ndarray:
        return logits[:, 0]

    def prediction(self, record: Any, windows: list[tuple[Example, np.ndarray]], data: TaskData) -> int:
        ((_, logits),) = windows
        return int(logits.argmax())

    def truth(self, data: TaskData) -> list[int]:
        return [int(example.target) for example in data.examples]

    def scores(self, predicted: list[int], true: list[int], labels: list[str]) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.array(predicted) == np.array(true)))}

    def probabilities(self, output: np.ndarray, labels: list[str]) -> list[float]:
        return softmax(output)
