"""Text from a trained model: the next tokens of a GPT, the masked ones of a BERT.

Legend: B rows, T new tokens, S tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ingot.model.attention.kv_cache import KeyValueCache
from ingot.model.config import ModelConfig
from ingot.model.generation.sampling import Sampler, Sampling
from ingot.model.generation.text_stream import TextStream
from ingot.model.transformer import LanguageModel

Finish = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step adds to a row: a token, and the text that is settled by it.

    Attributes:
        row: its place in the batch.
        token: token id; the one that ends a text is given, too.
        text: decoded text beyond that of the pieces before: empty where a character, or what may become a stop string,
            is incomplete, and where nothing decodes. Joined, the texts are the row's text, without its stop string.
        finish: why the row ends with this piece: a token of `eos_ids`, a stop string, or max_tokens. None: it goes on.
    """

    row: int
    token: int
    text: str = ""
    finish: Finish | None = None


@dataclass
class Completion:
    """A row's tokens, among them what ended it, its text, and why it ended."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish = "length"


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    decode: Callable[[list[int]], str] | None = None,
    rows: Sequence[int] | None = None,
    cache: bool = True,
) -> Iterator[Piece]:
    """Continues each prompt; yields the pieces of each step, in the order of the rows, as soon as they are drawn.

    A row's result does not depend on the rows beside it, up to the rounding of the model's logits.

    Args:
        prompts: token ids of the rows, at least one each; their lengths may differ.
        decode: token ids to text. None: the pieces have no text, and there can be no stop strings.
        rows: a number for each row, with which the seed makes its random numbers; None for 0, 1, 2, ...
        cache: keep keys and values. False reads the whole text again for each token: slower, the same tokens.

    Raises:
        ValueError: at the call (not at the first piece), with all that is wrong with the arguments.
    """
    check(model, prompts, sampling, decode)
    prompts = [list(prompt) for prompt in prompts]
    rows = range(len(prompts)) if rows is None else rows
    assert len(rows) == len(prompts), (len(rows), len(prompts))
    if not sampling.max_tokens:
        return iter(())
    sampler = Sampler(sampling, prompts, rows, model.config.vocab_size, model.head.weight.device)
    streams = None if decode is None else [TextStream(decode, prompt, sampling.stop) for prompt in prompts]
    steps = _tokens(model, prompts, sampling.max_tokens, sampler, cache)
    return _pieces(steps, len(prompts), sampling, streams)


def complete(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    decode: Callable[[list[int]], str] | None = None,
    rows: Sequence[int] | None = None,
    cache: bool = True,
) -> list[Completion]:
    """`generate` to the end: one completion for each prompt."""
    completions = [Completion() for _ in prompts]
    for piece in generate(model, prompts, sampling, decode=decode, rows=rows, cache=cache):
        completion = completions[piece.row]
        completion.tokens.append(piece.token)
        completion.text += piece.text
        if piece.finish is not None:
            completion.finish = piece.finish
    return completions


def check(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    decode: Callable[[list[int]], str] | None = None,
) -> None:
    """Raises the ValueError that `generate` would; for those who have more prompts than one batch."""
    problems = [] if model.config.causal else ["the model is not causal and cannot continue a text; use fill_mask"]
    problems += sampling.problems()
    if sampling.stop and decode is None:
        problems.append("stop strings are looked for in the text, so decode is needed")
    problems += _problems_of_prompts(
        model.config, prompts, sampling.max_tokens, getattr(model.embedding.token, "num_prompts", 0)
    )
    if problems:
        raise ValueError("\n".join(problems))


def _problems_of_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int]], max_tokens: int, num_learned: int
) -> list[str]:
    if not prompts:
        return ["there is no prompt"]
    if not all(prompts):
        return ["a prompt is empty; begin with at least one token, such as the end-of-text token"]
    problems = []
    least, most, longest = min(map(min, prompts)), max(map(max, prompts)), max(map(len, prompts))
    if least < -num_learned or most >= config.vocab_size:
        problems.append(
            f"the prompt has token ids from {least} to {most}, and the model knows 0 to {config.vocab_size - 1}; "
            "use the tokenizer it was trained with"
        )
    if config.positions == "learned" and longest + max_tokens > config.max_position_embeddings:
        problems.append(
            f"a prompt of {longest} tokens and {max_tokens} more exceed the model's {config.max_position_embeddings} positions; "
            f"shorten the prompt, or ask for at most {max(0, config.max_position_embeddings - longest)} tokens"
        )
    return problems


def _pieces(
    steps: Iterator[list[int]], num_rows: int, sampling: Sampling, streams: list[TextStream] | None
) -> Iterator[Piece]:
    """Adds text and ends to the tokens of each step; stops when all rows have ended."""
    eos_ids, running = frozenset(sampling.eos_ids), list(range(num_rows))
    for number, tokens in enumerate(steps, start=1):
        for row in running:
            token, text, finish = tokens[row], "", None
            if token in eos_ids:
                finish = "eos"
            elif streams is not None:
                text = streams[row].add(token)
                if streams[row].stopped:
                    finish = "stop"
            if finish is None and number == sampling.max_tokens:
                finish = "length"
            if finish is not None and streams is not None:
                text += streams[row].finish()
                if streams[row].stopped:
                    finish = "stop"
            if finish is not None:
                running = [other for other in running if other != row]  # a new list: this one is being walked
            yield Piece(row, token, text, finish)
        if not running:
            return


def _tokens(
    model: LanguageModel, prompts: list[list[int]], max_tokens: int, sampler: Sampler, cached: bool
) -> Iterator[list[int]]:
    """The next token of each row, step after step; rows that have ended go on, unheeded.

    Shorter prompts are padded on the left, so that all rows write at the same place of the cache.
    """
    batch, device = len(prompts), model.head.weight.device
    lengths, longest = [len(prompt) for prompt in prompts], max(map(len, prompts))
    total = longest + max_tokens - 1  # nothing reads the keys of the last token
    ids_BS = torch.zeros(batch, total, dtype=torch.long)
    shown_BS = torch.ones(batch, total, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids_BS[row, longest - len(prompt) : longest] = torch.tensor(prompt)
        shown_BS[row, : longest - len(prompt)] = False
    ids_BS = ids_BS.to(device)
    mask_BS = shown_BS.to(device) if min(lengths) < longest else None
    padding_B1 = torch.tensor([[longest - length] for length in lengths], device=device)
    positions_BS = (torch.arange(total, device=device) - padding_B1).clamp_(min=0)
    cache = KeyValueCache(model.config.num_hidden_layers, total) if cached else None
    begin = 0
    for end in range(longest, total + 1):
        logits_BV = _last_logits(
            model,
            ids_BS[:, begin:end],
            positions_BS[:, begin:end],
            None if mask_BS is None else mask_BS[:, :end],
            cache,
        )
        next_B = sampler(logits_BV)
        if end < total:
            ids_BS[:, end] = next_B
        begin = end if cached else 0
        yield next_B.tolist()


@torch.no_grad()
def _last_logits(
    model: LanguageModel, ids_BT: Tensor, positions_BT: Tensor, mask_BS: Tensor | None, cache: KeyValueCache | None
) -> Tensor:
    """fp32 logits (B, V) of the tokens that follow, with dropout off."""
    was_training = model.training
    if was_training:
        model.eval()
    hidden_BTD = model.hidden_states(ids_BT, positions_BT, cache=cache, attention_mask_BS=mask_BS)
    logits_BV = model.head(hidden_BTD[:, -1]).float()
    if was_training:
        model.train()
    return logits_BV


@torch.no_grad()
def fill_mask(model: LanguageModel, ids: list[int], mask_id: int, top_k: int = 5) -> list[list[tuple[int, float]]]:
    """For each mask in `ids`, in order, the `top_k` likeliest tokens with their probabilities, likeliest first.

    Raises:
        ValueError: a causal model, no mask in `ids`, a text beyond the learned positions, or a top_k that is not in
            1..vocabulary.
    """
    config = model.config
    problems = ["the model is causal and cannot look ahead; use generate"] if config.causal else []
    if mask_id not in ids:
        problems.append(f"none of the {len(ids)} tokens is the mask, {mask_id}; put it where a token is wanted")
    if not 1 <= top_k <= config.vocab_size:
        problems.append(f"top_k is {top_k}; it must be from 1 to {config.vocab_size}")
    if config.positions == "learned" and len(ids) > config.max_position_embeddings:
        problems.append(
            f"a text of {len(ids)} tokens exceeds the model's {config.max_position_embeddings} positions; shorten it"
        )
    if problems:
        raise ValueError("\n".join(problems))
    was_training = model.training
    model.eval()
    ids_1T = torch.tensor([ids], device=model.head.weight.device)
    masked_ND = model.hidden_states(ids_1T)[0, ids_1T[0] == mask_id]
    best = torch.softmax(model.head(masked_ND).float(), dim=-1).topk(top_k)
    model.train(was_training)
    return [list(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
