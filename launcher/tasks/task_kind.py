"""What a kind of task is: everything by which one kind differs from another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ingot.data.tasks.examples import Example
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Head:
    """The head that a model gets for a kind of task, as `TaskConfig` in model/finetuning/task_model.py describes it.

    Attributes:
        kind: one prediction for a text ("sequence"), one for each token, or the first and last token of a passage.
        problem: what the loss of a "sequence" head is computed from.
        num_outputs: outputs of the classifier; None for one per label.
    """

    kind: Literal["sequence", "token", "span"]
    problem: Literal["classes", "labels", "regression", "choice"] = "classes"
    num_outputs: int | None = None

    def outputs(self, labels: Sequence[str]) -> int:
        """Number of the classifier's outputs."""
        return len(labels) if self.num_outputs is None else self.num_outputs


class TaskKind(ABC):
    """A kind of task. A new one is a class in a file of its own and a line in launcher/tasks/registry.py.

    Attributes:
        name: value of task.kind.
        summary: what is learned, for --help.
        text_columns: the default of task.text_columns.
        metrics: names of an evaluation's scores; the first chooses the best checkpoint by default. Each has "loss".
        lower_is_better: those of the metrics of which the lowest value is the best.
        head: of the model; None for a task of a language model, which has no head of the task.
        attention: what the model must be: "causal" reads from left to right, "bidirectional" sees the whole text.
        transformers_class: the class of transformers that opens an exported model.
        has_label_set: whether the labels are a set of two or more, which the training file shows.
        label_smoothing, z_loss: whether these losses are defined.
        adversarial: whether adversarial training and R-Drop are defined: both need one prediction per text.
        distillation: whether a teacher's predictions can be learned.
        same_teacher_labels: whether a teacher must have the labels of the task.
        has_windows: whether a longer text than task.max_length becomes several examples; otherwise it loses its end.
        document_context: whether tokens of the document can be added around a text.
    """

    name: str
    summary: str
    text_columns: tuple[str, ...] = ("text",)
    metrics: tuple[str, ...]
    lower_is_better: tuple[str, ...] = ("loss",)
    head: Head | None
    attention: Literal["any", "causal", "bidirectional"] = "any"
    transformers_class: str = "AutoModelForSequenceClassification"
    has_label_set: bool = False
    label_smoothing: bool = False
    z_loss: bool = False
    adversarial: bool = False
    distillation: bool = False
    same_teacher_labels: bool = True
    has_windows: bool = False
    document_context: bool = False

    @abstractmethod
    def read(self, path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
        """The examples of a file; see `ReadTask` in data/tasks/task_data.py."""

    def record_of(self, texts: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
        """One example that a user gave as texts on the command line, as a record with `columns`.

        Raises:
            ValueError: too few or too many texts.
        """
        if len(texts) != len(columns):
            raise ValueError(
                f"text has {len(texts)} values, and the task reads {', '.join(columns)}; give one for each"
            )
        return dict(zip(columns, texts, strict=True))

    def outputs(self, logits: np.ndarray, examples: Sequence[Example]) -> list[np.ndarray]:
        """The output of each example of a packed row.

        Args:
            logits: of the head, fp32, (documents, C) of a "sequence" head, else (1, tokens, C). Beyond those of the
                examples there may be more.
        """
        assert self.head is not None, f"{self.name} has no head"
        per_token, found, start = self.head.kind != "sequence", [], 0
        for example in examples:
            end = start + (len(example.ids) if per_token else len(example.documents))
            found.append(self.output(example, logits[0, start:end] if per_token else logits[start:end]))
            start = end
        return found

    def output(self, example: Example, logits: np.ndarray) -> np.ndarray:
        """What is kept of an example's logits for `prediction`: ranks send it to rank 0.

        Args:
            logits: (documents, C) of a "sequence" head, else (tokens, C).
        """
        return logits[0]

    def predictions(self, data: TaskData, outputs: Mapping[int, np.ndarray]) -> list[Any]:
        """The prediction of each record, as plain JSON.

        Args:
            outputs: by the index of the example.
        """
        windows = defaultdict(list)
        for index, output in sorted(outputs.items()):
            example = data.examples[index]
            windows[example.record_index].append((example, output))
        return [self.prediction(record, windows[number], data) for number, record in enumerate(data.records)]

    @abstractmethod
    def prediction(self, record: Any, windows: list[tuple[Example, np.ndarray]], data: TaskData) -> Any:
        """The prediction of a record from its examples and their outputs."""

    @abstractmethod
    def truth(self, data: TaskData) -> list[Any]:
        """What `predictions` should be, from data with labels."""

    @abstractmethod
    def scores(self, predicted: list[Any], true: list[Any], labels: list[str]) -> dict[str, float]:
        """The metrics of predictions; see launcher/tasks/metrics.py."""

    def scores_of_loss(self, loss: float) -> dict[str, float]:
        """The metrics that follow from the mean loss."""
        return {}

    def report(self, predicted: list[Any], true: list[Any], labels: list[str]) -> str:
        """A table for people; empty if the kind has none."""
        return ""

    def figures(self, predicted: list[Any], true: list[Any], labels: list[str]) -> dict[str, Figure]:
        """Figures of matplotlib by their names in TensorBoard."""
        return {}

    def probabilities(self, output: np.ndarray, labels: list[str]) -> list[float] | dict[str, float] | None:
        """The probability of each label, or of each choice; None if the kind has none."""
        return None


def softmax(logits: np.ndarray) -> list[float]:
    """Probabilities of classes that exclude each other, rounded to six digits."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return rounded(powers / powers.sum())


def rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


def indices(names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """The index in `labels` of each name."""
    return [labels.index(name) for name in names]
