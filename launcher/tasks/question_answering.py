"""Questions whose answer is a passage of a paragraph."""

from __future__ import annotations

import numpy as np

from ingot.data.tasks.examples import Example
from ingot.data.tasks.question_answering import read_question_answering
from ingot.data.tasks.squad import Question
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.tasks.metrics import answer_scores
from ingot.launcher.tasks.task_kind import Head, TaskKind

NUM_BEST = 20
"""Number of best first and last tokens that are tried together, as in BERT's own script."""


class QuestionAnswering(TaskKind):
    """A prediction is a passage, or an empty text for no answer."""

    name = "question_answering"
    summary = "the passage of a paragraph that answers a question"
    text_columns = ("question", "context")
    metrics = ("f1", "loss", "exact_match")
    head = Head("span", num_outputs=2)
    has_windows = True
    attention = "bidirectional"
    transformers_class = "AutoModelForQuestionAnswering"

    def read(self, path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
        return read_question_answering(path, settings, tokenizer, labelled=labelled)

    def output(self, example: Example, logits: np.ndarray) -> np.ndarray:
        return logits

    def prediction(self, record: Question, windows: list[tuple[Example, np.ndarray]], data: TaskData) -> str:
        return best_answer(record.context, windows, data.settings.max_answer_tokens, data.settings.no_answer)

    def truth(self, data: TaskData) -> list[list[str]]:
        return [[text for text, _ in question.answers] for question in data.records]

    def scores(self, predicted: list[str], true: list[list[str]], labels: list[str]) -> dict[str, float]:
        numbered = {str(number): text for number, text in enumerate(predicted)}
        return answer_scores(numbered, {str(number): texts for number, texts in enumerate(true)})


def best_answer(context: str, windows: list[tuple[Example, np.ndarray]], max_tokens: int, may_be_none: bool) -> str:
    """The passage with the highest sum of the logits of its first and last token over all windows. If there may be
    none: "" where the sum of the first token of a window, which stands for no answer, is higher (Devlin et al. 2019,
    arXiv 1810.04805)."""
    best, text, no_answer = -np.inf, "", np.inf
    for example, logits in windows:
        assert example.alignment is not None
        start, end = logits[:, 0].copy(), logits[:, 1].copy()
        no_answer = min(no_answer, float(start[0] + end[0]))
        outside = example.alignment[:, 0] < 0
        start[outside], end[outside] = -np.inf, -np.inf
        starts, ends = np.argsort(-start)[:NUM_BEST], np.argsort(-end)[:NUM_BEST]
        sums = start[starts][:, None] + end[ends][None]
        length = ends[None] - starts[:, None]
        sums[(length < 0) | (length >= max_tokens)] = -np.inf
        row, column = np.unravel_index(sums.argmax(), sums.shape)
        if sums[row, column] > best:
            best = sums[row, column]
            text = context[example.alignment[starts[row], 0] : example.alignment[ends[column], 1]].strip()
    return text if best > no_answer or not may_be_none else ""
