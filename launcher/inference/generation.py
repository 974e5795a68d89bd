"""Continuing texts with a GPT, and filling the masks of texts with a BERT: the work of launcher/generate.py."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import TextIO

from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config.generate import GenerateOptions
from ingot.launcher.inference.prompt_files import read_prompts
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.runtime.device import in_dtype, open_device
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
        write(first, file, options.output is not None)
        for result in results:
            if options.output is None and "text" in result:
                print(SEPARATOR)
            write(result, file, options.output is not None)


def write(result: dict, file: TextIO, as_json: bool) -> None:
    """Writes a result as a line of JSON, or as text for people."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False), file=file, flush=True)
    elif "text" in result:
        print(result["prompt"] + result["text"], file=file, flush=True)
    else:
        for number, candidates in enumerate(result["masks"], start=1):
            words = ", ".join(f"{candidate['token']!r} {candidate['probability']:.3f}" for candidate in candidates)
            print(f"mask {number}: {words}", file=file, flush=True)


def continue_texts(
    options: GenerateOptions, records: list[dict], model: LanguageModel, tokenizer: Tokenizer
) -> Iterator[dict]:
    """Each record num_samples times, with the keys sample, text, finish and num_tokens; batch after batch."""
    sampling, decode = sampling_settings(options, tokenizer), decoder(tokenizer)
    prompts = [prompt_ids(options, record, tokenizer) for record in records]
    check(model, prompts, sampling, decode)  # all prompts, before any text is written
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
                "finish": completion.finish_reason,
                "num_tokens": len(completion.tokens),
            }


def stream(options: GenerateOptions, record: dict, model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Prints one text, each token as soon as it is sampled."""
    ids = prompt_ids(options, record, tokenizer)
    pieces = generate(model, [ids], sampling_settings(options, tokenizer), decode=decoder(tokenizer))
    print(record["prompt"], end="", flush=True)
    for piece in pieces:
        if piece.text:
            print(piece.text, end="", flush=True)
    print()


def sampling_settings(options: GenerateOptions, tokenizer: Tokenizer) -> Sampling:
    """The settings of sampling, from the options of the command."""
    return Sampling(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        stop=tuple(options.stop),
        eos_ids=tuple(sorted(eos_ids(options.checkpoint, tokenizer))),
    )


def decoder(tokenizer: Tokenizer) -> Callable[[list[int]], str]:
    """A function from token ids to text. It skips the ids of a rounded-up vocabulary that the tokenizer lacks."""
    return lambda ids: tokenizer.decode(i for i in ids if i < tokenizer.vocab_size)


def eos_ids(checkpoint: str, tokenizer: Tokenizer) -> set[int]:
    """The tokens that end a text: the tokenizer's, and those in generation_config.json of a Hugging Face folder.

    Raises:
        ValueError: generation_config.json is not a JSON object.
    """
    ids = set() if tokenizer.eos_id is None else {tokenizer.eos_id}
    settings = Path(checkpoint) / "generation_config.json"
    if settings.is_file():
        try:
            named = json.loads(settings.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{settings} is not a JSON object: {error}") from error
        ids |= {i for i in (named if isinstance(named, list) else [named]) if isinstance(i, int)}
    return ids


def prompt_ids(options: GenerateOptions, record: dict, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a prompt. With mark_start, and for an empty prompt, the token that begins a document comes first
    (or, without one, the token that ends a document)."""
    ids = tokenizer.encode(record["prompt"])
    if options.mark_start or not ids:
        start_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        ids = ids if start_id is None else [start_id, *ids]
    return ids


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
