"""How the next token is chosen: settings, what they do to the logits, and the draw.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How a text is continued, and where it ends.

    Attributes:
        max_tokens: Tokens to write at most.
        temperature: Divides the logits; 0 always takes the likeliest token (greedy).
        top_k: Draw from the k likeliest tokens only, and those as likely as the k-th. None for all.
        top_p: Draw from the smallest set of likeliest tokens that holds this probability (arXiv 1904.09751), after
            temperature and top_k. None for all.
        min_p: Draw from the tokens with at least this share of the likeliest one's probability (arXiv 2407.01082),
            after the others. None for all.
        repetition_penalty: Divides positive logits, and multiplies negative ones, of the tokens that stand in the
            prompt or were written (arXiv 1909.05858), before all else, greedy too. 1 for none.
        seed: Of the draws. Each row has a generator of its own, which follows from (seed, row) alone.
        eos_ids: Tokens that end a text.
        stop: Strings that end a text, of which they are no part.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    eos_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """What is wrong, each with its value and what would be right."""
        found = []
        if self.max_tokens < 0:
            found.append(f"max_tokens is {self.max_tokens}; it must be at least 0")
        if not 0 <= self.temperature < math.inf:
            found.append(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            found.append(f"top_k is {self.top_k}; it must be at least 1, or none")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            found.append(f"top_p is {self.top_p}; it must be above 0 and at most 1, or none")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            found.append(f"min_p is {self.min_p}; it must be from 0 to 1, or none")
        if not 0 < self.repetition_penalty < math.inf:
            found.append(f"repetition_penalty is {self.repetition_penalty}; it must be a positive number, 1 for none")
        if not all(self.stop):
            found.append("a stop string is empty; leave it out")
        return found


class Sampler:
    """Draws the next token of each row of a batch.

    Args:
        prompts: the rows' prompts, for the repetition penalty.
        rows: a number for each row; with the seed, all that its draws depend on.
    """

    def __init__(
        self, sampling: Sampling, prompts: Sequence[Sequence[int]], rows: Sequence[int], vocab_size: int, device
    ):
        self.sampling = sampling
        # A text as the seed is hashed in full, so that neighbouring seeds and rows have nothing in common; Python
        # promises the same numbers in each version. torch's own generator takes 32 bits of its seed.
        self._draws = [random.Random(f"{sampling.seed} {row}") for row in rows]
        self._seen_BV: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self._seen_BV = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
            for seen_V, prompt in zip(self._seen_BV, prompts, strict=True):
                seen_V[torch.tensor(prompt, device=device)] = True

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Token ids (B,) drawn from fp32 logits, on their device."""
        if self._seen_BV is not None:
            logits_BV = penalise(logits_BV, self._seen_BV, self.sampling.repetition_penalty)
        if self.sampling.temperature == 0:
            ids_B = logits_BV.argmax(-1)
        else:
            uniforms_B = torch.tensor([draw.random() for draw in self._draws], dtype=torch.float64)
            ids_B = draw_at(restrict(logits_BV, self.sampling), uniforms_B.to(logits_BV.device))
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, ids_B[:, None], True)
        return ids_B


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits with those of the tokens in `seen_BV` (bool) made less likely, as `transformers` does it."""
    return torch.where(seen_BV, torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)


def restrict(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Logits over the temperature, -inf where top_k, top_p or min_p, in this order, leaves a token out."""
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k is not None:
        least_B1 = logits_BV.topk(min(sampling.top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(descending=True, stable=True)
        probabilities_BV = sorted_BV.softmax(-1)
        before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
        out_BV = before_BV >= sampling.top_p
        out_BV[:, 0] = False
        logits_BV = logits_BV.masked_fill(out_BV.scatter(1, order_BV, out_BV), -math.inf)
    if sampling.min_p is not None:
        # In logarithms: no softmax is needed to compare two probabilities.
        least_B1 = logits_BV.amax(-1, keepdim=True) + (math.log(sampling.min_p) if sampling.min_p else -math.inf)
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -math.inf)
    return logits_BV


def draw_at(logits_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The token ids (B,) at which the distributions' cumulative sums pass uniform numbers in [0, 1), fp64 (B,)."""
    # fp64, so that neither the sum's rounding nor the number's coarseness takes a chance from unlikely tokens.
    sums_BV = logits_BV.double().softmax(-1).cumsum(-1)
    at_B1 = uniforms_B[:, None] * sums_BV[:, -1:]
    return torch.searchsorted(sums_BV, at_B1, right=True)[:, 0].clamp_(max=logits_BV.shape[-1] - 1)
