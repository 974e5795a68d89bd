"""The kinds of tasks by name: one line for each."""

import difflib

from ingot.launcher.tasks.classification import Classification
from ingot.launcher.tasks.instruction import Instruction
from ingot.launcher.tasks.multi_label import MultiLabel
from ingot.launcher.tasks.multiple_choice import MultipleChoice
from ingot.launcher.tasks.question_answering import QuestionAnswering
from ingot.launcher.tasks.regression import Regression
from ingot.launcher.tasks.task_kind import TaskKind
from ingot.launcher.tasks.token_classification import TokenClassification

TASK_KINDS: dict[str, TaskKind] = {}
"""All kinds by name, in the order in which --help lists them; the first is the default."""


def register(kind: type[TaskKind]) -> None:
    """Makes a kind known to every command."""
    assert kind.name not in TASK_KINDS, f"two kinds of tasks are named {kind.name}"
    TASK_KINDS[kind.name] = kind()


register(Classification)
register(MultiLabel)
register(Regression)
register(MultipleChoice)
register(TokenClassification)
register(QuestionAnswering)
register(Instruction)

DEFAULT = Classification.name


def task_kind(name: str) -> TaskKind:
    """The kind of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TASK_KINDS:
        near = difflib.get_close_matches(name, TASK_KINDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"task.kind is {name}; it must be one of {', '.join(TASK_KINDS)}{hint}")
    return TASK_KINDS[name]


def names_where(attribute: str) -> str:
    """The names of the kinds that have an attribute set, for messages."""
    return ", ".join(name for name, kind in TASK_KINDS.items() if getattr(kind, attribute))


def described() -> str:
    """A line for each kind with its default columns and its scores, for --help."""
    lines = ["Kinds of tasks (task.kind), with the default of task.text_columns and the scores:"]
    for kind in TASK_KINDS.values():
        lines.append(f"  {kind.name}: {kind.summary}")
        lines.append(f"      columns: {', '.join(kind.text_columns)}; scores: {', '.join(kind.metrics)}")
    return "\n".join(lines)
