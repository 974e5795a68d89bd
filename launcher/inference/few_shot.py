"""Classification without training: a template is filled in with each label's words, and the likeliest one is chosen.

A GPT is asked for the likelihood of the words after what stands before them (Brown et al. 2020), a BERT for the words'
tokens at masks in their place (Schick and Schuetze 2021).
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
"""What stands for a text that says nothing (Zhao et al. 2021)."""
_SHOTS = 401


@dataclass(frozen=True)
class PromptTemplate:
    """A text with slots {NAME} for values and one {label} for a label's words."""

    text: str

    def check(self, causal: bool) -> None:
        """
        Raises:
            ValueError: a slot that is missing or there twice.
        """
        slots = self.slots
        if slots.count(LABEL) != 1:
            raise ValueError(f"the template {self.text!r} needs the slot {{{LABEL}}} once")
        if len(slots) == 1:
            raise ValueError(f"the template {self.text!r} has no slot for a text, such as {{text}}")
        if causal and not re.search(rf"\S\s*\{{{LABEL}\}}", self.text):
            raise ValueError(f"a model that reads from left to right needs a text before {{{LABEL}}} in the template")

    @property
    def slots(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.text)

    def filled(self, values: Mapping[str, str]) -> tuple[str, str]:
        """What stands before the label's words, and what behind them."""
        before, after = self.text.split(f"{{{LABEL}}}")
        fill = lambda text: re.sub(r"\{(\w+)\}", lambda slot: values[slot[1]], text)  # noqa: E731
        return fill(before), fill(after)


class Prompter:
    """Scores of labels for texts.

    Args:
        words: each label's words, as they stand in the template.
        shots: examples, each its values and label, that stand before each text with their labels' words.
        separator: between examples.
        mean: whether the likelihood of several tokens is their mean instead of their sum.
        most: tokens that are computed at a time.

    Raises:
        ValueError: a template without its slots, words of no token, or examples that leave no room.
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
        most: int = 8192,
    ):
        template.check(model.config.causal)
        if not model.config.causal and tokenizer.mask_id is None:
            raise ValueError(f"the tokenizer {tokenizer.folder} has no mask token, which a BERT's prompts need")
        self.model, self.tokenizer, self.template, self.words = model, tokenizer, template, dict(words)
        self.mean, self.most, self.shortened = mean, most, 0
        self._shots = "".join(
            "".join((before, words[label], after, separator))
            for values, label in shots
            for before, after in [template.filled(values)]
        )
        self._bias = np.zeros(len(words))
        self._wanted: dict[tuple[str, str], list[int]] = {}
        frame = tokenizer.template(pair=False)
        self._frame = (list(frame.before), list(frame.after))
        if model.config.causal:
            self._frame = ([] if tokenizer.bos_id is None else [tokenizer.bos_id], [])

    def calibrate(self, columns: Sequence[str]) -> None:
        """Contextual calibration (Zhao et al. 2021): from now on what each label gets from texts that say nothing is
        taken off its score."""
        self._bias = np.zeros(len(self.words))
        found = list(self.scores([dict.fromkeys(columns, text) for text in CONTENT_FREE]))
        self._bias = np.log(np.mean([np.exp(s - np.logaddexp.reduce(s)) for s in found], axis=0))

    def scores(self, records: Sequence[Mapping[str, str]]) -> Iterator[np.ndarray]:
        """For each record a log-likelihood for each label, in the order of `words`."""
        rows = [row for values in records for row in self._rows(values)]
        found: list[float] = []
        batch: list[tuple[list[int], list[int], list[int]]] = []
        for row in rows:
            if batch and sum(len(ids) for ids, _, _ in batch) + len(row[0]) > self.most:
                found += self._likelihoods(batch)
                batch = []
            batch.append(row)
        found += self._likelihoods(batch)
        for start in range(0, len(found), len(self.words)):
            yield np.array(found[start : start + len(self.words)]) - self._bias

    def _rows(self, values: Mapping[str, str]) -> Iterator[tuple[list[int], list[int], list[int]]]:
        """For each label ids of a prompt with its words, the places to look at, and the ids that are wanted there."""
        before, after = self.template.filled(values)
        # The words' tokens are those that they have where they stand: a space before them belongs to the first.
        gap = before[len(before.rstrip(" ")) :]
        causal, most = self.model.config.causal, self.model.config.max_position_embeddings
        head = self.tokenizer.encode(self._shots + before.rstrip(" "))
        tail = [] if causal else self.tokenizer.encode(after)
        begin, end = self._frame
        for word in self.words.values():
            if (gap, word) not in self._wanted:
                self._wanted[gap, word] = self.tokenizer.encode(gap + word)
            wanted = self._wanted[gap, word]
            if not wanted:
                raise ValueError(f"the label's words {word!r} are no token")
            room = most - len(begin) - len(wanted) - len(tail) - len(end)
            if room < 1:
                raise ValueError(f"nothing of the prompt fits the model's {most} positions")
            self.shortened += len(head) > room
            start = begin + head[-room:]
            middle = wanted if causal else [self.tokenizer.mask_id] * len(wanted)
            first = len(start) - causal  # a GPT tells at each token what comes next
            yield start + middle + tail + end, list(range(first, first + len(wanted))), wanted

    @torch.inference_mode()
    def _likelihoods(self, batch: list[tuple[list[int], list[int], list[int]]]) -> list[float]:
        device = self.model.head.weight.device
        lengths = [len(ids) for ids, _, _ in batch]
        starts = np.cumsum([0, *lengths])
        ids = torch.tensor([i for row, _, _ in batch for i in row], device=device)[None]
        cu_seqlens = torch.tensor(starts, dtype=torch.int32, device=device)
        hidden = self.model.hidden_states(ids, cu_seqlens=cu_seqlens)[0]
        places = [start + place for start, (_, row, _) in zip(starts, batch, strict=False) for place in row]
        wanted = torch.tensor([i for _, _, row in batch for i in row], device=device)
        logits = self.model.head(hidden[torch.tensor(places, device=device)]).float()
        values = logits.log_softmax(-1).gather(-1, wanted[:, None])[:, 0].double().cpu().numpy()
        counts = [len(row) for _, _, row in batch]
        parts = np.split(values, np.cumsum(counts)[:-1])
        return [float(part.mean() if self.mean else part.sum()) for part in parts]


def choose_shots(labels: Sequence[str], count: int, seed: int) -> list[int]:
    """`count` examples of each label, in an order in which the labels take turns; a pure function of the seed."""
    order = permute(np.arange(len(labels), dtype=np.uint64), len(labels), int(mix(seed, _SHOTS)[0])).astype(int)
    by_label: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    for number in order.tolist():
        if len(by_label[labels[number]]) < count:
            by_label[labels[number]].append(number)
    if short := [label for label, found in by_label.items() if len(found) < count]:
        raise ValueError(f"there are fewer than {count} examples of {', '.join(short)}; lower shots")
    return [found[turn] for turn in range(count) for found in by_label.values()]
