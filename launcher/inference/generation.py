"""Continuing texts with a GPT, and filling the masks of texts with a BERT: what launcher/generate.py does."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import TextIO

from ingot.launcher.config.generate import GenerateOptions
from ingot.launcher.inference.prompt_files import read_prompts
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.runtime.device import in_dtype, open_device
from ingot.model.generation.generate import Sampling, check, complete, fill_mask, generate

MASK = "<mask>"
RULE = "-" * 40


def generate_texts(options: GenerateOptions) -> None:
    """Writes the texts to the output, or to standard output; a single one token by token.

    Raises:
        ValueError: no such checkpoint or tokenizer, or options that do not fit.
        OSError: a file that cannot be read or written.
    """
    options.check()
    records = [{"prompt": options.prompt}] if options.prompts is None else read_prompts(options.prompts)

    model, tokenizer = load_for_inference(options.checkpoint, options.tokenizer, open_device(options.device))
    model = in_dtype(model, options.dtype)
    # The first result comes before the output is opened: what cannot work leaves an older output as it was.
    if not model.config.causal:
        results = iter(fill(options, records, model, tokenizer))
    elif len(records) * options.num_samples == 1 and options.output is None:
        stream(options, records[0], model, tokenizer)
        return
    else:
        results = continue_texts(options, records, model, tokenizer)
    first = next(results)
    with nullcontext(sys.stdout) if options.output is None else open(options.output, "w", encoding="utf-8") as file:
        write(first, file, options.output is not None)
        for result in results:
            if options.output is None and "text" in result:
                print(RULE)
            write(result, file, options.output is not None)


def write(result: dict, file: TextIO, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, ensure_ascii=False), file=file, flush=True)
    elif "text" in result:
        print(result["prompt"] + result["text"], file=file, flush=True)
    else:
        for number, candidates in enumerate(result["masks"], start=1):
            words = ", ".join(f"{candidate['token']!r} {candidate['probability']:.3f}" for candidate in candidates)
            print(f"mask {number}: {words}", file=file, flush=True)


def continue_texts(options: GenerateOptions, records: list[dict], model, tokenizer) -> Iterator[dict]:
    """The records, num_samples times each, with their `text` and how it came about; batch after batch."""

    sampling, decode = sampling_of(options, tokenizer), decoder(tokenizer)
    prompts = [prompt_ids(options, record, tokenizer) for record in records]
    check(model, prompts, sampling, decode)  # of all, before any text is written
    texts = list(product(range(len(records)), range(options.num_samples)))
    for first in range(0, len(texts), options.batch_size):
        batch = texts[first : first + options.batch_size]
        ids, rows = [prompts[prompt] for prompt, _ in batch], range(first, first + len(batch))
        completions = complete(model, ids, sampling, decode=decode, rows=rows)
        for (prompt, sample), completion in zip(batch, completions, strict=True):
            yield {
                **records[prompt],
                "sample": sample,
                "text": completion.text,
                "finish": completion.finish,
                "num_tokens": len(completion.tokens),
            }


def stream(options: GenerateOptions, record: dict, model, tokenizer) -> None:
    """Prints one text as it comes."""

    ids = prompt_ids(options, record, tokenizer)
    pieces = generate(model, [ids], sampling_of(options, tokenizer), decode=decoder(tokenizer))
    print(record["prompt"], end="", flush=True)
    for piece in pieces:
        if piece.text:
            print(piece.text, end="", flush=True)
    print()


def sampling_of(options: GenerateOptions, tokenizer):

    return Sampling(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        stop=tuple(options.stop),
        eos_ids=tuple(sorted(end_ids(options.checkpoint, tokenizer))),
    )


def decoder(tokenizer) -> Callable[[list[int]], str]:
    """Ids to text; those that the tokenizer lacks, in a model whose vocabulary is rounded up, are no text."""
    return lambda ids: tokenizer.decode(i for i in ids if i < tokenizer.vocab_size)


def end_ids(checkpoint: str, tokenizer) -> set[int]:
    """The tokens that end a text: the tokenizer's, and what a Hugging Face folder's generation_config.json names."""
    ids = {tokenizer.eos_id} - {None}
    settings = Path(checkpoint) / "generation_config.json"
    if settings.is_file():
        try:
            named = json.loads(settings.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{settings} is no JSON object: {error}") from error
        ids |= {i for i in (named if isinstance(named, list) else [named]) if isinstance(i, int)}
    return ids


def prompt_ids(options: GenerateOptions, record: dict, tokenizer) -> list[int]:
    """A prompt's tokens, after the one that begins documents; that one stands for an empty prompt in any case."""
    ids = tokenizer.encode(record["prompt"])
    if options.mark_start or not ids:
        mark = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        ids = ids if mark is None else [mark, *ids]
    return ids


def fill(options: GenerateOptions, records: list[dict], model, tokenizer) -> list[dict]:
    """The records with their `masks`: for each, the likeliest tokens."""

    if tokenizer.mask_id is None:
        raise ValueError(f"the tokenizer {tokenizer.folder} has no mask token, which a BERT's prompts need")
    decode, results = decoder(tokenizer), []
    for record in records:
        parts = record["prompt"].split(MASK)
        if len(parts) < 2:
            raise ValueError(
                f"the prompt of a BERT needs {MASK} where a token is wanted, and has none: {record['prompt']!r}"
            )
        ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        for number, part in enumerate(parts):
            ids += ([tokenizer.mask_id] if number else []) + tokenizer.encode(part)
        ids += [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        filled = fill_mask(model, ids, tokenizer.mask_id, 5 if options.top_k is None else options.top_k)
        masks = [[{"token": decode([token]), "probability": p} for token, p in best] for best in filled]
        results.append({**record, "masks": masks})
    return results
