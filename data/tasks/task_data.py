"""What is read from the file of a downstream task, and how the file is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ingot.data.tasks.examples import Example
from ingot.data.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class TaskSettings:
    """How a file is read, and how long its examples may be. Each kind of task uses the fields that it needs.

    Attributes:
        text_columns: columns of the text, or of the two texts of a pair; what else they are, each reader says.
        label_column: column of the label; regression may have several, with commas between.
        labels: the set of labels; None finds them in the file.
        label_names: other names for labels of the file.
        conll_word_column, conll_label_column: of CoNLL files.
        max_length: most tokens of an example.
        refuse_overlong: whether a longer example is an error; otherwise it is truncated.
        doc_stride: tokens by which the windows of a long paragraph overlap.
        document_context: most tokens of its document that are added on either side of a sentence.
        max_answer_tokens: most tokens of an answer.
        no_answer: whether a question may have no answer in its paragraph.
        template: a text with {input} where the input goes.
        chat_template: whether the tokenizer's chat template writes instructions: auto (chats only), always or never.
    """

    text_columns: Sequence[str]
    label_column: str = "label"
    labels: list[str] | None = None
    label_names: Mapping[str, str] = field(default_factory=dict)
    conll_word_column: int = 0
    conll_label_column: int = -1
    max_length: int = 512
    refuse_overlong: bool = False
    doc_stride: int = 128
    document_context: int = 0
    max_answer_tokens: int = 30
    no_answer: bool = True
    template: str = "{input}"
    chat_template: str = "auto"


@dataclass(frozen=True)
class TaskData:
    """The examples of a file.

    Attributes:
        records: what the examples were made from, by `Example.record_index`: records, sentences or questions. Each has
            `where`, the file and the line.
        settings: how the file was read.
        labels: the set of labels; empty for tasks without one.
        num_truncated: examples that were longer than max_length.
        num_repaired_labels: labels I- that continue nothing, and are read as the beginning of an entity.
        num_stripped_answers: answers that had white space around them.
        num_lost_answers: questions whose answer is in no window as a whole; nothing is learned from them.
    """

    examples: list[Example]
    records: Sequence[Any]
    settings: TaskSettings
    labels: list[str] = field(default_factory=list)
    num_truncated: int = 0
    num_repaired_labels: int = 0
    num_stripped_answers: int = 0
    num_lost_answers: int = 0


class ReadTask(Protocol):
    """A function that reads the file of a task.

    Args:
        path: a file; its ending says the format.
        labelled: whether to read labels; without, the examples have no target.

    Raises:
        ValueError, OSError: what is wrong in the file, with the line.
    """

    def __call__(
        self, path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True
    ) -> TaskData: ...
