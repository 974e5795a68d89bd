"""Sampling of the next token: the options, their effect on the logits, and the random draw.

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
    """How a text is continued, and when it ends.

    Attributes:
        max_tokens: Largest number of new tokens.
        temperature: Divides the logits. 0 always takes the most likely token (greedy).
        top_k: Sample only from the k most likely tokens, and from tokens that are as likely as the k-th. None for all.
        top_p: Sample from the smallest set of most likely tokens that has at least this probability (arXiv 1904.09751),
            after temperature and top_k. None for all.
        min_p: Sample from the tokens that have at least this fraction of the probability of the most likely one (arXiv
            2407.01082), after top_p. None for all.
        repetition_penalty: Divides positive logits and multiplies negative logits of the tokens of the prompt and of
            the text so far (arXiv 1909.05858), before all other options, also in greedy decoding. 1 for none.
        seed: Random seed. Each row has its own random generator, which depends only on (seed, row).
        eos_ids: Tokens that end a text.
        stop: Strings that end a text. They are not part of the text.
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
        """All problems of the options, each with the value and the allowed values."""
        found = []
        if self.max_tokens < 0:
            found.append(f"max_tokens is {self.max_tokens}; it must be at least 0")
        if not 0 <= self.temperature < math.inf:
            found.append(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            found.append(f"top_k is {self.top_k}; it must be at least 1, or null")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            found.append(f"top_p is {self.top_p}; it must be above 0 and at most 1, or null")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            found.append(f"min_p is {self.min_p}; it must be from 0 to 1, or null")
        if not 0 < self.repetition_penalty < math.inf:
            found.append(
                f"repetition_penalty is {self.repetition_penalty}; it must be a positive number; 1 means no penalty"
            )
        if not all(self.stop):
            found.append("a stop string is empty; leave it out")
        return found


class Sampler:
    """Samples the next token of each row of a batch.

    Args:
        prompts: the prompts of the rows, for the repetition penalty.
        rows: a number for each row. Its random numbers depend only on the seed and this number.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        vocab_size: int,
        device: torch.device,
    ):
        self.sampling = sampling
        # Python hashes the whole text of a seed, so that neighbouring seeds and rows are independent, and promises the
        # same numbers in each version. torch's own generator uses only 32 bits of its seed.
        self._generators = [random.Random(f"{sampling.seed} {row}") for row in rows]
        self._seen_BV: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self._seen_BV = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
            for seen_V, prompt in zip(self._seen_BV, prompts, strict=True):
                seen_V[torch.tensor(list(prompt), device=device)] = True

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Token ids (B,) sampled from fp32 logits, on their device."""
        if self._seen_BV is not None:
            logits_BV = apply_repetition_penalty(logits_BV, self._seen_BV, self.sampling.repetition_penalty)
        if self.sampling.temperature == 0:
            ids_B = logits_BV.argmax(-1)
        else:
            uniforms_B = torch.tensor([generator.random() for generator in self._generators], dtype=torch.float64)
            ids_B = sample_at(filter_logits(logits_BV, self.sampling), uniforms_B.to(logits_BV.device))
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, ids_B[:, None], True)
        return ids_B


def apply_repetition_penalty(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits that make the tokens in `seen_BV` (bool) less likely, as in `transformers`."""
    return torch.where(seen_BV, torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)


def filter_logits(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Logits divided by the temperature, and -inf where top_k, top_p or min_p, in this order, excludes a token."""
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k is not None:
        least_B1 = logits_BV.topk(min(sampling.top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(descending=True, stable=True)
        probabilities_BV = sorted_BV.softmax(-1)
        before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
        excluded_BV = before_BV >= sampling.top_p
        excluded_BV[:, 0] = False
        logits_BV = logits_BV.masked_fill(excluded_BV.scatter(1, order_BV, excluded_BV), -math.inf)
    if sampling.min_p is not None:
        # In logarithms: the comparison of two probabilities needs no softmax.
        least_B1 = logits_BV.amax(-1, keepdim=True) + (math.log(sampling.min_p) if sampling.min_p else -math.inf)
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -math.inf)
    return logits_BV


def sample_at(logits_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The token ids (B,) at which the cumulative distributions exceed uniform numbers in [0, 1), fp64 (B,)."""
    # In fp64, so that rounding does not remove the chance of unlikely tokens.
    sums_BV = logits_BV.double().softmax(-1).cumsum(-1)
    thresholds_B1 = uniforms_B[:, None] * sums_BV[:, -1:]
    return torch.searchsorted(sums_BV, thresholds_B1, right=True)[:, 0].clamp_(max=logits_BV.shape[-1] - 1)
