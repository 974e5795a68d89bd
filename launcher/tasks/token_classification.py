"""A label for each word: named entities, parts of speech, chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ingot.data.tasks.conll import TaggedSentence
from ingot.data.tasks.examples import Example
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tasks.token_classification import read_token_classification
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.tasks.metrics import entity_report, entity_scores, word_scores
from ingot.launcher.tasks.task_kind import Head, TaskKind

OUTSIDE = "O"
"""The label of words outside of entities; a set of labels without it has no entities, only words are scored."""


class TokenClassification(TaskKind):
    """A prediction is a list with the label of each word."""

    name = "token_classification"
    summary = "a label for each word"
    text_columns = ("words",)
    metrics = ("f1", "loss", "precision", "recall", "accuracy")
    head = Head("token")
    transformers_class = "AutoModelForTokenClassification"
    has_label_set = True
    label_smoothing = distillation = document_context = has_windows = True

    def read(self, path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
        return read_token_classification(path, settings, tokenizer, labelled=labelled)

    def record_of(self, texts: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
        """One sentence, whose words have spaces between them."""
        return {columns[0]: " ".join(texts).split()}

    def output(self, example: Example, logits: np.ndarray) -> np.ndarray:
        """The label of each word."""
        return logits[_words(example)[0]].argmax(axis=-1)

    def prediction(
        self, record: TaggedSentence, windows: list[tuple[Example, np.ndarray]], data: TaskData
    ) -> list[str]:
        labels = [OUTSIDE if OUTSIDE in data.labels else data.labels[0]] * len(record.words)
        for example, output in windows:
            for word, label in zip(_words(example)[1], output, strict=True):
                labels[word] = data.labels[label]
        return labels

    def truth(self, data: TaskData) -> list[list[str]]:
        return [sentence.labels for sentence in data.records]

    def scores(self, predicted: list[list[str]], true: list[list[str]], labels: list[str]) -> dict[str, float]:
        return entity_scores(predicted, true) if OUTSIDE in labels else word_scores(predicted, true)

    def report(self, predicted: list[list[str]], true: list[list[str]], labels: list[str]) -> str:
        return entity_report(predicted, true) if OUTSIDE in labels else ""


def _words(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """bool [tokens], which tokens are the first of a word; and the index of each of these words."""
    assert example.alignment is not None
    first = example.alignment >= 0
    return first, example.alignment[first]
