"""Instructions with an output, and chats: a causal language model learns the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ingot.data.tasks.examples import Example
from ingot.data.tasks.instruction import read_instruction, reference
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.tasks.metrics import text_scores
from ingot.launcher.tasks.task_kind import TaskKind


class Instruction(TaskKind):
    """A prediction is a text, which the model generates. While training only the loss is measured."""

    name = "instruction"
    summary = "the output that follows an input, or what the assistant says in a chat"
    text_columns = ("input", "output")
    metrics = ("loss", "perplexity")
    lower_is_better = ("loss", "perplexity")
    head = None
    attention = "causal"
    transformers_class = "AutoModelForCausalLM"
    label_smoothing = z_loss = distillation = True

    def read(self, path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
        return read_instruction(path, settings, tokenizer, labelled=labelled)

    def record_of(self, texts: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
        """The input, or what the user says in a chat."""
        chat = len(columns) == 1
        return {columns[0]: [{"role": "user", "content": texts[0]}] if chat else texts[0]}

    def prediction(self, record: Any, windows: list[tuple[Example, np.ndarray]], data: TaskData) -> str:
        raise AssertionError("a language model generates its predictions; see launcher/inference/prediction.py")

    def truth(self, data: TaskData) -> list[str]:
        return [reference(record, data.settings.text_columns) for record in data.records]

    def scores(self, predicted: list[str], true: list[str], labels: list[str]) -> dict[str, float]:
        """Scores of generated texts."""
        return text_scores(predicted, true)

    def scores_of_loss(self, loss: float) -> dict[str, float]:
        return {"perplexity": float(np.exp(min(loss, 700.0)))}
