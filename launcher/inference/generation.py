"""Continuing texts with a GPT, and filling the masks of texts with a BERT: the work of launcher/generate.py."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import product
from typing import TextIO

from ingot.data.tokenizers.chat import ChatEncoder
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config.generate import GenerateOptions
from ingot.launcher.inference.prompt_files import read_prompts
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.runtime.device import in_dtype, open_device
from ingot.model.config import ModelConfig
from ingot.model.generation.generate import Sampling, check, complete, fill_mask, generate
from ingot.model.transformer import LanguageModel

MASK = "<mask>"
SEPARATOR = "-" * 40


def generate_texts(options: GenerateOptions) -> None:
    """Writes the texts to the output, or to standard output. A single text is printed token by token.

    Args:
        options: checked already.

    Raises:
        ValueError: there is no such checkpoint or tokenizer, or the options do not fit the model.
        OSError: a file cannot be read or written.
    """
    records = [{"prompt": options.prompt}] if options.prompts is None else read_prompts(options.prompts)
    model, tokenizer = load_for_inference(options.checkpoint, options.tokenizer, open_device(options.device))
    model = in_dtype(model, options.dtype)
    if any(is_chat(options, record) for record in records):
        if not model.config.causal:
            raise ValueError(f"{options.checkpoint} is a BERT, which fills masks and has no chats; leave out chat")
        tokenizer = tokenizer.with_chat_template()
    # The first result is computed before the output is opened: an error leaves an older output unchanged.
    if not model.config.causal:
        results: Iterator[dict] = iter(fill(options, records, model, tokenizer))
    elif len(records) * options.num_samples == 1 and options.output is None:
        stream(options, records[0], model, tokenizer)
        return
    else:
        results = continue_texts(options, records, model, tokenizer)
    first = next(results)
    with nullcontext(sys.stdout) if options.output is None else open(options.output, "w", encoding="utf-8") as file:
        write(options, first, file)
        for result in results:
            if options.output is None and "text" in result:
                print(SEPARATOR)
            write(options, result, file)


def write(options: GenerateOptions, result: dict, file: TextIO) -> None:
    """Writes a result as a line of JSON into a file, or as text for people."""
    if options.output is not None:
        print(json.dumps(result, ensure_ascii=False), file=file, flush=True)
    elif "text" in result:
        print(shown_prompt(options, result) + result["text"], file=file, flush=True)
    else:
        for number, candidates in enumerate(result["masks"], start=1):
            words = ", ".join(f"{candidate['token']!r} {candidate['probability']:.3f}" for candidate in candidates)
            print(f"mask {number}: {words}", file=file, flush=True)


def continue_texts(
    options: GenerateOptions, records: list[dict], model: LanguageModel, tokenizer: Tokenizer
) -> Iterator[dict]:
    """Each record num_samples times, with the keys sample, text, finish and num_tokens; batch after batch."""
    sampling, decode = sampling_settings(options, records, tokenizer), decoder(tokenizer)
    prompts = prompt_ids(options, records, tokenizer)
    limits = room_of(model.config, prompts, options.max_tokens)
    check(model, prompts, sampling, decode, limits)  # all prompts, before any text is written
    texts = list(product(range(len(records)), range(options.num_samples)))
    for first in range(0, len(texts), options.batch_size):
        batch = texts[first : first + options.batch_size]
        ids, rows = [prompts[prompt] for prompt, _ in batch], range(first, first + len(batch))
        room = [limits[prompt] for prompt, _ in batch]
        completions = complete(model, ids, sampling, decode=decode, rows=rows, limits=room, compile=options.compile)
        for (prompt, sample), completion in zip(batch, completions, strict=True):
            yield {
                **records[prompt],
                "sample": sample,
                "text": completion.text,
                "finish": completion.finish_reason,
                "num_tokens": len(completion.tokens),
            }


def stream(options: GenerateOptions, record: dict, model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Prints one text, each token as soon as it is sampled."""
    ids, sampling = prompt_ids(options, [record], tokenizer), sampling_settings(options, [record], tokenizer)
    limits = room_of(model.config, ids, options.max_tokens)
    pieces = generate(model, ids, sampling, decode=decoder(tokenizer), limits=limits, compile=options.compile)
    print(shown_prompt(options, record), end="", flush=True)
    for piece in pieces:
        if piece.text:
            print(piece.text, end="", flush=True)
    print()


def room_of(
    config: ModelConfig, prompts: Sequence[Sequence[int]], max_tokens: int, where: Sequence[str] = ()
) -> list[int]:
    """The most new tokens of each prompt: fewer where it leaves fewer learned positions, which stderr is told. A prompt
    that leaves none keeps `max_tokens`, and is refused later.

    Args:
        where: names of the prompts; by default they are numbered.
    """
    if config.positions != "learned":
        return [max_tokens] * len(prompts)
    names = where or [f"prompt {number}" for number in range(1, len(prompts) + 1)]
    rooms = [config.max_position_embeddings - len(prompt) for prompt in prompts]
    limits = [min(max_tokens, room) if room > 0 else max_tokens for room in rooms]
    short = [f"{name} ({limit})" for name, limit in zip(names, limits, strict=True) if limit < max_tokens]
    if short:
        shown = ", ".join(short[:5]) + (f" and {len(short) - 5} more" if len(short) > 5 else "")
        print(
            f"note: with the {config.max_position_embeddings} positions of the model, {len(short)} of {len(prompts)} "
            f"prompts leave room for fewer than {max_tokens} new tokens: {shown}",
            file=sys.stderr,
        )
    return limits


def is_chat(options: GenerateOptions, record: dict) -> bool:
    """Whether a prompt goes through the chat template."""
    return options.chat or "messages" in record


def shown_prompt(options: GenerateOptions, record: dict) -> str:
    """What is printed before the text: the prompt that it continues; an answer stands alone."""
    return "" if is_chat(options, record) else record["prompt"]


def sampling_settings(options: GenerateOptions, records: Sequence[dict], tokenizer: Tokenizer) -> Sampling:
    """The settings of sampling, from the options of the command."""
    chats = any(is_chat(options, record) for record in records)
    return Sampling(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        stop=tuple(options.stop),
        eos_ids=ChatEncoder(tokenizer).end_ids if chats else tokenizer.end_ids,
    )


def decoder(tokenizer: Tokenizer) -> Callable[[list[int]], str]:
    """A function from token ids to text. It skips the ids of a rounded-up vocabulary that the tokenizer lacks."""
    return lambda ids: tokenizer.decode(i for i in ids if i < tokenizer.vocab_size)


def prompt_ids(options: GenerateOptions, records: Sequence[dict], tokenizer: Tokenizer) -> list[list[int]]:
    """The tokens of each prompt. With mark_start, and for an empty prompt, the token that begins a document comes first
    (or, without one, the token that ends a document). A chat is as its template writes it.

    Raises:
        ValueError: the chat template refuses the messages.
    """
    chats = [
        (record.get("messages") or [{"role": "user", "content": record["prompt"]}], f"prompt {number}")
        for number, record in enumerate(records, start=1)
        if is_chat(options, record)
    ]
    templated = ChatEncoder(tokenizer).prompts(chats) if chats else iter(())
    start_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    found = []
    for record in records:
        ids = next(templated).tolist() if is_chat(options, record) else tokenizer.encode(record["prompt"])
        start = not ids or (options.mark_start and not is_chat(options, record))
        found.append([start_id, *ids] if start and start_id is not None else ids)
    return found


def fill(options: GenerateOptions, records: list[dict], model: LanguageModel, tokenizer: Tokenizer) -> list[dict]:
    """The records with the key `masks`: the likeliest tokens for each mask of the prompt.

    Raises:
        ValueError: a prompt has no mask, or the tokenizer has no mask token.
    """
    if tokenizer.mask_id is None:
        raise ValueError(f"the tokenizer {tokenizer.folder} has no mask token, and the prompts of a BERT need one")
    decode, results = decoder(tokenizer), []
    for record in records:
        parts = record["prompt"].split(MASK)
        if len(parts) < 2:
            raise ValueError(
                f"the prompt of a BERT needs {MASK} in place of each token to predict; there is none in "
                f"{record['prompt']!r}"
            )
        ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        for number, part in enumerate(parts):
            ids += ([tokenizer.mask_id] if number else []) + tokenizer.encode(part)
        ids += [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        filled = fill_mask(model, ids, tokenizer.mask_id, 5 if options.top_k is None else options.top_k)
        masks = [[{"token": decode([token]), "probability": p} for token, p in best] for best in filled]
        results.append({**record, "masks": masks})
    return results
