"""Text from a trained model: the next tokens of a GPT, the masked ones of a BERT.

Legend: T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from model.kv_cache import KeyValueCache
from model.transformer import LanguageModel


def generate(
    model: LanguageModel,
    prompt_ids: list[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_id: int | None = None,
    cache: bool = True,
) -> Iterator[int]:
    """Yields up to `max_tokens` token ids that follow the prompt, each as soon as it is drawn.

    Args:
        prompt_ids: at least one token id.
        temperature: divides the logits; 0 takes the likeliest token always.
        top_k: draw from the k likeliest tokens only; None for all.
        top_p: draw from the smallest set of likeliest tokens that holds this probability (arXiv 1904.09751), after
            temperature and top_k; None for all.
        seed: of this text's own generator, which is on the CPU: the same draws on every device.
        eos_id: token that ends the text; it is yielded, as the last one.
        cache: keep keys and values. False reads the whole text again for each token: slower, the same tokens.

    Raises:
        ValueError: at the call (not at the first token), with all that is wrong with the arguments.
    """
    config = model.config
    problems = [] if config.causal else ["the model is not causal and cannot continue a text; use fill_mask"]
    if not prompt_ids:
        problems.append("the prompt is empty; begin with at least one token, such as the end-of-text token")
    elif not 0 <= min(prompt_ids) <= max(prompt_ids) < config.vocab_size:
        problems.append(
            f"the prompt has token ids from {min(prompt_ids)} to {max(prompt_ids)}, and the model knows 0 to "
            f"{config.vocab_size - 1}; use the tokenizer it was trained with"
        )
    if max_tokens < 0:
        problems.append(f"max_tokens is {max_tokens}; it must be at least 0")
    total = len(prompt_ids) + max_tokens
    if config.positions == "learned" and total > config.max_positions:
        problems.append(
            f"a prompt of {len(prompt_ids)} tokens and {max_tokens} more exceed the model's {config.max_positions} "
            f"positions; shorten the prompt, or ask for at most {max(0, config.max_positions - len(prompt_ids))} tokens"
        )
    if not 0 <= temperature < float("inf"):
        problems.append(f"temperature is {temperature}; it must be 0 (greedy) or a positive number")
    if top_k is not None and top_k < 1:
        problems.append(f"top_k is {top_k}; it must be at least 1, or none")
    if top_p is not None and not 0 < top_p <= 1:
        problems.append(f"top_p is {top_p}; it must be above 0 and at most 1, or none")
    if problems:
        raise ValueError("\n".join(problems))
    generator = torch.Generator().manual_seed(seed)
    # Nothing reads the keys of the last token, so the cache has room for one less.
    kv_cache = KeyValueCache(config.num_layers, total - 1) if cache else None
    return _stream(model, list(prompt_ids), max_tokens, temperature, top_k, top_p, generator, eos_id, kv_cache)


def _stream(
    model: LanguageModel,
    ids: list[int],
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
    eos_id: int | None,
    cache: KeyValueCache | None,
) -> Iterator[int]:
    new_ids = ids
    for _ in range(max_tokens):
        logits_V = _last_logits(model, ids if cache is None else new_ids, cache)
        new_id = sample(logits_V, temperature, top_k, top_p, generator)
        yield new_id
        if new_id == eos_id:
            return
        ids, new_ids = [*ids, new_id], [new_id]


@torch.no_grad()
def _last_logits(model: LanguageModel, ids: list[int], cache: KeyValueCache | None) -> Tensor:
    """fp32 logits (V,) on the CPU of the token that follows `ids`, with dropout off."""
    was_training = model.training
    model.eval()
    input_ids_1T = torch.tensor([ids], device=model.head.weight.device)
    last_hidden_D = model.hidden_states(input_ids_1T, cache=cache)[0, -1]
    logits_V = model.head(last_hidden_D).float().cpu()
    model.train(was_training)
    return logits_V


def sample(
    logits_V: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> int:
    """One token id drawn from fp32 logits (V,); the arguments are those of `generate`."""
    if temperature == 0:
        return int(logits_V.argmax())
    logits, ids = logits_V.sort(descending=True, stable=True)
    if top_k is not None:
        logits, ids = logits[:top_k], ids[:top_k]
    probabilities = torch.softmax(logits / temperature, dim=-1)
    if top_p is not None:
        mass_before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities * (mass_before < top_p)  # the first always stays: nothing is before it
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


@torch.no_grad()
def fill_mask(model: LanguageModel, ids: list[int], mask_id: int, top_k: int = 5) -> list[list[tuple[int, float]]]:
    """For each mask in `ids`, in order, the `top_k` likeliest tokens with their probabilities, likeliest first.

    Raises:
        ValueError: a causal model, no mask in `ids`, or a top_k that is not in 1..vocabulary.
    """
    problems = ["the model is causal and cannot look ahead; use generate"] if model.config.causal else []
    if mask_id not in ids:
        problems.append(f"none of the {len(ids)} tokens is the mask, {mask_id}; put it where a token is wanted")
    if not 1 <= top_k <= model.config.vocab_size:
        problems.append(f"top_k is {top_k}; it must be from 1 to {model.config.vocab_size}")
    if problems:
        raise ValueError("\n".join(problems))
    was_training = model.training
    model.eval()
    ids_1T = torch.tensor([ids], device=model.head.weight.device)
    masked_ND = model.hidden_states(ids_1T)[0, ids_1T[0] == mask_id]
    best = torch.softmax(model.head(masked_ND).float(), dim=-1).topk(top_k)
    model.train(was_training)
    return [list(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
