"""From a task model's outputs to predictions and scores, kind by kind.

An output is what is kept of an example's logits: (C,) of a text, (words,) labels of a sentence's words, (tokens, 2) of
a paragraph's window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from ingot.data.tasks.examples import Example
from ingot.data.tasks.tasks import TaskData
from ingot.launcher.finetuning.metrics import (
    answer_scores,
    classification_report,
    classification_scores,
    entity_report,
    entity_scores,
    multi_label_report,
    multi_label_scores,
    regression_scores,
)

BEST_ENDS = 20
"""Best starts and ends of an answer that are tried together, as in BERT's own script."""


def output_of(kind: str, example: Example, logits: np.ndarray) -> np.ndarray:
    """
    Args:
        logits: fp32 (C,) of a text, (choices,) of a choice, (tokens, C) of tokens.
    """
    if kind == "tagging":
        return logits[example.places >= 0].argmax(axis=-1)
    return logits


def predictions(
    kind: str, data: TaskData, outputs: Mapping[int, np.ndarray], labels: list[str], max_answer_tokens: int = 30
) -> list[Any]:
    """One for each source: a label, list of labels, numbers, number of a choice, labels of words, or a text.

    Args:
        outputs: by the number of the example.
    """
    of_source = defaultdict(list)
    for number, output in sorted(outputs.items()):
        of_source[data.examples[number].source].append((data.examples[number], output))
    found: list[Any] = []
    for source, thing in enumerate(data.sources):
        parts = of_source[source]
        if kind == "tagging":
            words = ["O" if "O" in labels else labels[0]] * len(thing.words)
            for example, output in parts:
                for word, label in zip(example.places[example.places >= 0], output, strict=True):
                    words[word] = labels[label]
            found.append(words)
        elif kind == "answers":
            found.append(best_answer(thing.context, parts, max_answer_tokens))
        else:
            (_, logits), *_ = parts
            if kind == "classification":
                found.append(labels[int(logits.argmax())])
            elif kind == "choice":
                found.append(int(logits.argmax()))
            elif kind == "multi_label":
                found.append([label for label, logit in zip(labels, logits, strict=True) if logit > 0])
            else:
                found.append([float(value) for value in logits])
    return found


def best_answer(context: str, windows: list[tuple[Example, np.ndarray]], max_tokens: int) -> str:
    """The passage with the highest sum of its start's and end's logits over all windows; "" where pointing at the first
    token, which stands for no answer, has more (Devlin et al. 2019)."""
    best, text, nothing = -np.inf, "", np.inf
    for example, logits in windows:
        start, end = logits[:, 0].copy(), logits[:, 1].copy()
        nothing = min(nothing, float(start[0] + end[0]))
        outside = example.places[:, 0] < 0
        start[outside], end[outside] = -np.inf, -np.inf
        starts, ends = np.argsort(-start)[:BEST_ENDS], np.argsort(-end)[:BEST_ENDS]
        sums = start[starts][:, None] + end[ends][None]
        length = ends[None] - starts[:, None]
        sums[(length < 0) | (length >= max_tokens)] = -np.inf
        row, column = np.unravel_index(sums.argmax(), sums.shape)
        if sums[row, column] > best:
            best = sums[row, column]
            text = context[example.places[starts[row], 0] : example.places[ends[column], 1]].strip()
    return text if best > nothing or nothing == np.inf else ""


def truth(kind: str, data: TaskData, labels: list[str]) -> list[Any]:
    """What `predictions` should be."""
    if kind == "tagging":
        return [sentence.labels for sentence in data.sources]
    if kind == "answers":
        return [[text for text, _ in question.answers] for question in data.sources]
    targets = [example.target for example in data.examples]
    if kind == "classification":
        return [labels[int(target)] for target in targets]
    if kind == "choice":
        return [int(target) for target in targets]
    if kind == "multi_label":
        return [[label for label, on in zip(labels, target, strict=True) if on] for target in targets]
    return [[float(value) for value in target] for target in targets]


def scores(kind: str, predicted: list[Any], true: list[Any], labels: list[str]) -> dict[str, float]:
    """The task's scores; see launcher/finetuning/metrics.py."""
    if kind == "classification":
        return classification_scores(_numbers(predicted, labels), _numbers(true, labels), labels)
    if kind == "choice":
        return {"accuracy": float(np.mean(np.array(predicted) == np.array(true)))}
    if kind == "multi_label":
        return multi_label_scores(_sets(predicted, labels), _sets(true, labels), labels)
    if kind == "regression":
        sides = np.array(predicted).T, np.array(true).T
        parts = [regression_scores(mine, right) for mine, right in zip(*sides, strict=True)]
        return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
    if kind == "tagging":
        return entity_scores(predicted, true) if "O" in labels else _word_scores(predicted, true)
    numbered = {str(n): value for n, value in enumerate(predicted)}
    return answer_scores(numbered, {str(n): value for n, value in enumerate(true)})


def report(kind: str, predicted: list[Any], true: list[Any], labels: list[str]) -> str:
    """A table for people; empty where a kind has none."""
    if kind == "classification":
        return classification_report(_numbers(predicted, labels), _numbers(true, labels), labels)
    if kind == "multi_label":
        return multi_label_report(_sets(predicted, labels), _sets(true, labels), labels)
    if kind == "tagging" and "O" in labels:
        return entity_report(predicted, true)
    return ""


def _word_scores(predicted: list[list[str]], true: list[list[str]]) -> dict[str, float]:
    right = [a == b for mine, theirs in zip(predicted, true, strict=True) for a, b in zip(mine, theirs, strict=True)]
    share = float(np.mean(right))  # what each of them is, averaged over words
    return dict.fromkeys(("precision", "recall", "f1", "accuracy"), share)


def _numbers(names: list[str], labels: list[str]) -> list[int]:
    return [labels.index(name) for name in names]


def _sets(names: list[list[str]], labels: list[str]) -> np.ndarray:
    return np.array([[label in each for label in labels] for each in names], dtype=bool)
