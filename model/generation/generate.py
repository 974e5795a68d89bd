"""Text from a trained model: the next tokens of a GPT, the masked tokens of a BERT.

Legend: B rows, T new tokens, S tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ingot.model.attention.kv_cache import KeyValueCache
from ingot.model.config import ModelConfig
from ingot.model.generation import static_decoding
from ingot.model.generation.sampling import Sampler, Sampling
from ingot.model.generation.static_decoding import decoder_of
from ingot.model.generation.text_stream import TextStream
from ingot.model.transformer import LanguageModel

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class NewToken:
    """The token that a step adds to a row, and the text that is complete with it.

    Attributes:
        row: index in the batch.
        token: token id. The token that ends a text is included.
        text: decoded text that is new with this token. It is empty while a character, or a possible stop string, is
            incomplete, and without a decoder. All texts of a row together are its text, without the stop string.
        finish_reason: why the row ends with this token: a token of `eos_ids`, a stop string, or max_tokens. None: the
            row continues.
    """

    row: int
    token: int
    text: str = ""
    finish_reason: FinishReason | None = None


@dataclass
class Completion:
    """The tokens of a row, with the one that ended it, its text, and why it ended."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason = "length"


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    decode: Callable[[list[int]], str] | None = None,
    rows: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
    cache: bool = True,
    compile: bool = False,
) -> Iterator[NewToken]:
    """Continues each prompt. Yields the new tokens of each step, in the order of the rows, as soon as they are sampled.

    The result of a row does not depend on the other rows of the batch, except for rounding of the logits.

    Args:
        prompts: token ids of the rows, at least one each. The lengths may differ.
        decode: token ids to text. None: the new tokens have no text, and stop strings are refused.
        rows: a number for each row; seed and number give the random numbers of the row. None for 0, 1, 2, ...
        limits: largest number of new tokens of each row, at least 1; None for sampling.max_tokens.
        cache: keep keys and values. False computes the whole text again for each token: slower, the same tokens.
        compile: compile the computation of a token, on a GPU as a CUDA graph (static_decoding.py). The first token
            takes a minute, the others less time; the same tokens, except for rounding of the logits.

    Raises:
        ValueError: at the call (not at the first token), with all problems of the arguments.
    """
    check(model, prompts, sampling, decode, limits)
    if compile and (found := static_decoding.problems(model.config)):
        raise ValueError("\n".join(found))
    prompts = [list(prompt) for prompt in prompts]
    rows = range(len(prompts)) if rows is None else rows
    assert len(rows) == len(prompts), (len(rows), len(prompts))
    if not sampling.max_tokens:
        return iter(())
    sampler = Sampler(sampling, prompts, rows, model.config.vocab_size, model.head.weight.device)
    streams = None if decode is None else [TextStream(decode, prompt, sampling.stop) for prompt in prompts]
    limits = [sampling.max_tokens] * len(prompts) if limits is None else limits
    steps = _sampled_tokens(model, prompts, max(limits), sampler, cache, compile)
    return _with_text(steps, limits, sampling, streams)


def complete(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    decode: Callable[[list[int]], str] | None = None,
    rows: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
    cache: bool = True,
    compile: bool = False,
) -> list[Completion]:
    """`generate` to the end: one completion for each prompt."""
    completions = [Completion() for _ in prompts]
    options: dict[str, Any] = {"decode": decode, "rows": rows, "limits": limits, "cache": cache, "compile": compile}
    for new in generate(model, prompts, sampling, **options):
        completion = completions[new.row]
        completion.tokens.append(new.token)
        completion.text += new.text
        if new.finish_reason is not None:
            completion.finish_reason = new.finish_reason
    return completions


def check(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    decode: Callable[[list[int]], str] | None = None,
    limits: Sequence[int] | None = None,
) -> None:
    """Raises the ValueError that `generate` would raise. For callers that check all batches before the first one."""
    problems = [] if model.config.causal else ["the model is not causal and cannot continue a text; use fill_mask"]
    problems += sampling.problems()
    if sampling.stop and decode is None:
        problems.append("stop strings are searched in the text; pass decode")
    num_virtual_tokens = getattr(model.embedding.token, "num_virtual_tokens", 0)
    limits = [sampling.max_tokens] * len(prompts) if limits is None else limits
    assert len(limits) == len(prompts), (len(limits), len(prompts))
    problems += _problems_of_prompts(model.config, prompts, limits, num_virtual_tokens)
    if problems:
        raise ValueError("\n".join(problems))


def _problems_of_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int]], limits: Sequence[int], num_virtual_tokens: int
) -> list[str]:
    if not prompts:
        return ["there is no prompt"]
    if not all(prompts):
        return ["a prompt is empty; pass at least one token, for example the end-of-text token"]
    problems = []
    least, most = min(map(min, prompts)), max(map(max, prompts))
    sizes = [(len(prompt) + limit, len(prompt), limit) for prompt, limit in zip(prompts, limits, strict=True)]
    whole, prompt, limit = max(sizes)
    if least < -num_virtual_tokens or most >= config.vocab_size:
        problems.append(
            f"the prompt has token ids from {least} to {most}, and the model has 0 to {config.vocab_size - 1}; "
            "use the tokenizer of the model"
        )
    positions = config.max_position_embeddings
    if config.positions == "learned" and whole > positions:
        problems.append(
            f"a prompt of {prompt} tokens and {limit} more exceed the {positions} positions of the model; shorten the "
            f"prompt, or set max_tokens to at most {max(0, positions - prompt)}"
        )
    return problems


def _with_text(
    steps: Iterator[list[int]], limits: Sequence[int], sampling: Sampling, streams: list[TextStream] | None
) -> Iterator[NewToken]:
    """Adds text and finish reasons to the tokens of each step; stops when all rows have ended."""
    eos_ids, running = frozenset(sampling.eos_ids), list(range(len(limits)))
    for number, tokens in enumerate(steps, start=1):
        for row in running:
            token, text = tokens[row], ""
            finish_reason: FinishReason | None = None
            if token in eos_ids:
                finish_reason = "eos"
            elif streams is not None:
                text = streams[row].add(token)
                if streams[row].stopped:
                    finish_reason = "stop"
            if finish_reason is None and number == limits[row]:
                finish_reason = "length"
            if finish_reason is not None and streams is not None:
                text += streams[row].finish()
                if streams[row].stopped:
                    finish_reason = "stop"
            if finish_reason is not None:
                running = [other for other in running if other != row]  # a new list: the loop iterates over the old one
            yield NewToken(row, token, text, finish_reason)
        if not running:
            return


def _sampled_tokens(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampler: Sampler,
    cached: bool,
    compiled: bool,
) -> Iterator[list[int]]:
    """The next token of each row, step by step. Rows that have ended continue; the caller ignores their tokens.

    Shorter prompts are padded on the left, so that all rows write at the same position of the cache.
    """
    batch, device = len(prompts), model.head.weight.device
    lengths, longest = [len(prompt) for prompt in prompts], max(map(len, prompts))
    total = longest + max_tokens - 1  # no token reads the keys of the last one
    ids_BS = torch.zeros(batch, total, dtype=torch.long)
    is_token_BS = torch.ones(batch, total, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids_BS[row, longest - len(prompt) : longest] = torch.tensor(list(prompt))
        is_token_BS[row, : longest - len(prompt)] = False
    ids_BS = ids_BS.to(device)
    mask_BS = is_token_BS.to(device) if min(lengths) < longest else None
    padding_B1 = torch.tensor([[longest - length] for length in lengths], device=device)
    # A row that has ended may be beyond the last position; its tokens are ignored.
    last = model.config.max_position_embeddings - 1 if model.config.positions == "learned" else None
    positions_BS = (torch.arange(total, device=device) - padding_B1).clamp_(min=0, max=last)
    cache = KeyValueCache(model.config.num_hidden_layers, total) if cached or compiled else None
    decoder, slots_S = None, torch.arange(total, device=device)
    begin = 0
    for end in range(longest, total + 1):
        ids_BT, positions_BT = ids_BS[:, begin:end], positions_BS[:, begin:end]
        with _evaluating(model):
            if decoder is not None:
                logits_BV = decoder(model, ids_BT, positions_BT, slots_S[begin:end])
            else:
                logits_BV = _last_logits(
                    model, ids_BT, positions_BT, None if mask_BS is None else mask_BS[:, :end], cache
                )
        if compiled and decoder is None and cache is not None:
            decoder = decoder_of(model, batch, total)
            decoder.load(cache, is_token_BS.to(device))
        next_B = sampler(logits_BV)
        if end < total:
            ids_BS[:, end] = next_B
        begin = end if cache is not None else 0
        yield next_B.tolist()


@contextmanager
def _evaluating(model: LanguageModel) -> Iterator[None]:
    """Without dropout, and with the kernels of `attention_kernels`."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with attention_kernels(model.head.weight.device):
            yield
    finally:
        if was_training:
            model.train()


def attention_kernels(device: torch.device) -> AbstractContextManager:
    """Leaves cuDNN's attention out on a GPU: it makes a plan for each shape, and while a text grows each token has
    another number of keys. The flash kernel needs none."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


@torch.no_grad()
def _last_logits(
    model: LanguageModel, ids_BT: Tensor, positions_BT: Tensor, mask_BS: Tensor | None, cache: KeyValueCache | None
) -> Tensor:
    """fp32 logits (B, V) of the next tokens."""
    hidden_BTD = model.hidden_states(ids_BT, positions_BT, cache=cache, attention_mask_BS=mask_BS)
    return model.head(hidden_BTD[:, -1]).float()


@torch.no_grad()
def fill_mask(model: LanguageModel, ids: list[int], mask_id: int, top_k: int = 5) -> list[list[tuple[int, float]]]:
    """The `top_k` most likely tokens for each mask in `ids`, in order, with their probabilities, most likely first.

    Raises:
        ValueError: a causal model, no mask in `ids`, more tokens than learned positions, or a top_k outside
            1..vocab_size.
    """
    config = model.config
    problems = ["the model is causal and cannot fill masks; use generate"] if config.causal else []
    if mask_id not in ids:
        problems.append(
            f"none of the {len(ids)} tokens is the mask token, {mask_id}; put it where a token is to be predicted"
        )
    if not 1 <= top_k <= config.vocab_size:
        problems.append(f"top_k is {top_k}; it must be from 1 to {config.vocab_size}")
    if config.positions == "learned" and len(ids) > config.max_position_embeddings:
        problems.append(
            f"a text of {len(ids)} tokens exceeds the {config.max_position_embeddings} positions of the model; "
            "shorten it"
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
