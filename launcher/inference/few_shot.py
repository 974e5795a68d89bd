"""Classification without training: a template is filled with the words of each label, and the likeliest label wins.

A GPT computes the likelihood of the words after the text before them (Brown et al. 2020, arXiv 2005.14165). A BERT
gets masks instead of the words, and computes the likelihood of their tokens there (Schick and Schütze 2021, arXiv
2001.07676).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ingot.data.order.keyed_random import mix, permute
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.model.transformer import LanguageModel

LABEL = "label"
CONTENT_FREE = ("N/A", "", "[MASK]")
"""Inputs without content (Zhao et al. 2021, arXiv 2102.09690)."""
_SHOTS = 401  # the stream of random numbers that chooses the examples


@dataclass(frozen=True)
class PromptTemplate:
    """A text with a slot {NAME} for each value, and one slot {label} for the words of a label."""

    text: str

    def check(self, causal: bool) -> None:
        """Checks the slots.

        Args:
            causal: whether the model reads from left to right.

        Raises:
            ValueError: a slot is missing, or {label} occurs twice.
        """
        slots = self.slots
        if slots.count(LABEL) != 1:
            raise ValueError(f"the template {self.text!r} must have the slot {{{LABEL}}} exactly once")
        if len(slots) == 1:
            raise ValueError(f"the template {self.text!r} has no slot for a text, such as {{text}}")
        if causal and not re.search(rf"\S\s*\{{{LABEL}\}}", self.text):
            raise ValueError(f"a model that reads from left to right needs a text before {{{LABEL}}} in the template")

    @property
    def slots(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.text)

    def fill(self, values: Mapping[str, str]) -> tuple[str, str]:
        """The text before the label's words, and the text after them, with the values in their slots."""
        before, after = (
            re.sub(r"\{(\w+)\}", lambda slot: values[slot[1]], part) for part in self.text.split(f"{{{LABEL}}}")
        )
        return before, after


@dataclass(frozen=True)
class _Prompt:
    """The prompt of one text and one label.

    Attributes:
        input_ids: of the whole prompt.
        positions: of the logits that predict the label's words.
        target_ids: the tokens of the label's words.
    """

    input_ids: list[int]
    positions: range
    target_ids: list[int]


class FewShotClassifier:
    """Scores labels for texts.

    Args:
        words: the words of each label, which replace {label} in the template.
        shots: examples that come before each text: the values and the label of each.
        separator: the text between two examples.
        mean: whether the log-likelihood of several tokens is their mean instead of their sum.
        max_tokens: the most tokens in one forward pass, if a prompt is not longer.

    Attributes:
        num_truncated: prompts that were longer than the model's positions, and lost their beginning.

    Raises:
        ValueError: the template lacks a slot, or the tokenizer of a BERT has no mask token.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        template: PromptTemplate,
        words: Mapping[str, str],
        shots: Sequence[tuple[Mapping[str, str], str]] = (),
        *,
        separator: str = "\n\n",
        mean: bool = False,
        max_tokens: int = 8192,
    ):
        template.check(model.config.causal)
        if not model.config.causal and tokenizer.mask_id is None:
            raise ValueError(f"the tokenizer {tokenizer.folder} has no mask token, and the prompts of a BERT need one")
        self.model, self.tokenizer, self.template, self.words = model, tokenizer, template, dict(words)
        self.mean, self.max_tokens, self.num_truncated = mean, max_tokens, 0
        self._shots = ""
        for values, label in shots:
            before, after = template.fill(values)
            self._shots += before + words[label] + after + separator
        self._bias = np.zeros(len(words))
        self._target_ids: dict[tuple[str, str], list[int]] = {}  # by (spaces before the words, words)
        special_tokens = tokenizer.template(pair=False)
        self._prefix, self._suffix = list(special_tokens.before), list(special_tokens.after)
        if model.config.causal:
            self._prefix, self._suffix = [] if tokenizer.bos_id is None else [tokenizer.bos_id], []

    def calibrate(self, columns: Sequence[str]) -> None:
        """Contextual calibration (Zhao et al. 2021, arXiv 2102.09690): from now on, each label's score is reduced by
        its score for inputs without content.

        Args:
            columns: the slots of the template but {label}.
        """
        self._bias = np.zeros(len(self.words))
        scores = list(self.scores([dict.fromkeys(columns, text) for text in CONTENT_FREE]))
        self._bias = np.log(np.mean([np.exp(s - np.logaddexp.reduce(s)) for s in scores], axis=0))

    def scores(self, records: Sequence[Mapping[str, str]]) -> Iterator[np.ndarray]:
        """The log-likelihood (nats) of each label, in the order of `words`, for each record.

        Raises:
            ValueError: the words of a label have no token, or a prompt has no room within the model's positions.
        """
        prompts = [prompt for values in records for prompt in self._prompts(values)]
        scores: list[float] = []
        batch: list[_Prompt] = []
        for prompt in prompts:
            if batch and sum(len(p.input_ids) for p in batch) + len(prompt.input_ids) > self.max_tokens:
                scores += self._log_likelihoods(batch)
                batch = []
            batch.append(prompt)
        scores += self._log_likelihoods(batch)
        for start in range(0, len(scores), len(self.words)):
            yield np.array(scores[start : start + len(self.words)]) - self._bias

    def _prompts(self, values: Mapping[str, str]) -> Iterator[_Prompt]:
        """The prompt of each label."""
        before, after = self.template.fill(values)
        # The words are tokenized with the spaces before them: in most tokenizers a space is part of the next token.
        spaces = before[len(before.rstrip(" ")) :]
        causal, most = self.model.config.causal, self.model.config.max_position_embeddings
        context_ids = self.tokenizer.encode(self._shots + before.rstrip(" "))
        after_ids = [] if causal else self.tokenizer.encode(after)
        for words in self.words.values():
            if (spaces, words) not in self._target_ids:
                self._target_ids[spaces, words] = self.tokenizer.encode(spaces + words)
            target_ids = self._target_ids[spaces, words]
            if not target_ids:
                raise ValueError(f"the label's words {words!r} have no token; give other words in labels")
            room = most - len(self._prefix) - len(target_ids) - len(after_ids) - len(self._suffix)
            if room < 1:
                raise ValueError(
                    f"the text after the label's words {words!r} leaves no room for a prompt in the model's {most} "
                    f"positions; shorten the template"
                )
            self.num_truncated += len(context_ids) > room
            input_ids = self._prefix + context_ids[-room:]
            first = len(input_ids) - causal  # the logits of a GPT at one token predict the next one
            if causal:
                input_ids += target_ids
            else:
                assert self.tokenizer.mask_id is not None
                input_ids += [self.tokenizer.mask_id] * len(target_ids)
            yield _Prompt(input_ids + after_ids + self._suffix, range(first, first + len(target_ids)), target_ids)

    @torch.inference_mode()
    def _log_likelihoods(self, batch: list[_Prompt]) -> list[float]:
        """The log-likelihood of each prompt's target tokens. The prompts are packed into one row."""
        device = self.model.head.weight.device
        starts = np.cumsum([0, *(len(prompt.input_ids) for prompt in batch)])
        input_ids_BT = torch.tensor([i for prompt in batch for i in prompt.input_ids], device=device)[None]
        cu_seqlens = torch.tensor(starts, dtype=torch.int32, device=device)
        hidden = self.model.hidden_states(input_ids_BT, cu_seqlens=cu_seqlens)[0]
        positions = [start + n for start, prompt in zip(starts, batch, strict=False) for n in prompt.positions]
        targets = torch.tensor([i for prompt in batch for i in prompt.target_ids], device=device)
        logits = self.model.head(hidden[torch.tensor(positions, device=device)]).float()
        values = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0].double().cpu().numpy()
        parts = np.split(values, np.cumsum([len(prompt.target_ids) for prompt in batch])[:-1])
        return [float(part.mean() if self.mean else part.sum()) for part in parts]


def choose_shots(labels: Sequence[str], count: int, seed: int) -> list[int]:
    """Chooses `count` examples of each label; the labels alternate. It is a pure function of the seed.

    Args:
        labels: of all examples.

    Returns:
        The indices of the chosen examples.

    Raises:
        ValueError: a label has fewer examples.
    """
    order = permute(np.arange(len(labels), dtype=np.uint64), len(labels), int(mix(seed, _SHOTS)[0])).astype(int)
    by_label: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    for number in order.tolist():
        if len(by_label[labels[number]]) < count:
            by_label[labels[number]].append(number)
    if rare := [label for label, chosen in by_label.items() if len(chosen) < count]:
        raise ValueError(f"there are fewer than {count} examples of {', '.join(rare)}; lower shots")
    return [chosen[turn] for turn in range(count) for chosen in by_label.values()]
