"""Continues texts with a trained GPT, or fills their masks with a trained BERT.

python launcher/generate.py --checkpoint runs/demo --prompt "def " --max_tokens 64 --top_p 0.9
python launcher/generate.py --checkpoint runs/demo --prompts prompts.jsonl --num_samples 4 --output texts.jsonl
python launcher/generate.py --checkpoint runs/demo-bert --prompt "import <mask>"
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal, TextIO

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.config.parser import parse
from ingot.launcher.inference.prompt_files import read_prompts
from ingot.launcher.prepare import spread_lists
from ingot.launcher.runtime.exit_codes import DONE, bad_input, run_main

MASK = "<mask>"
RULE = "-" * 40


@dataclass
class GenerateOptions:
    """What to write, and how."""

    checkpoint: str
    """A run folder (its newest sound checkpoint is taken), a checkpoint folder, or a Hugging Face folder."""
    prompt: str = ""
    """The text to continue; empty begins a document. For a BERT, a text with <mask> where a token is wanted."""
    prompts: str | None = None
    """File of prompts instead: one a line, or .jsonl with "prompt" in each object."""
    output: str | None = None
    """File for the texts, .jsonl, an object for each; by default they are printed."""
    max_tokens: int = 64
    """Tokens to write at most; the end of the document ends it earlier."""
    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only. For a BERT, how many tokens to show for a mask; there 5 by default."""
    top_p: float | None = None
    """Draw from the smallest set of likeliest tokens that holds this probability only."""
    min_p: float | None = None
    """Draw from the tokens with at least this share of the likeliest one's probability only."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens that were there before; 1 for none."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a text and are no part of it: --stop Q: A:, or, as JSON, --stop '["\\n\\n", "[END]"]'."""
    num_samples: int = 1
    """How many texts to write for each prompt."""
    seed: int = 0
    """Of the draws. Text number n of a command has random numbers of its own, whatever the batch size."""
    batch_size: int = 16
    """How many texts are written at a time."""
    mark_start: bool = True
    """Put the token that begins documents before each prompt, as in training."""
    tokenizer: str | None = None
    """Tokenizer folder; by default the one in the run's folder."""
    device: str = "cpu"
    """Where to compute, in torch's words."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights and of the computation."""

    def check(self) -> None:
        """Looks for what needs no model to be seen as wrong.

        Raises:
            ValueError: all problems at once.
        """
        problems = []
        if self.prompt and self.prompts is not None:
            problems.append("prompt and prompts are both given; leave one out")
        for name in ("num_samples", "batch_size"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.output is not None and not Path(self.output).absolute().parent.is_dir():
            problems.append(f"the folder of output {self.output} does not exist")
        if problems:
            raise ValueError("; ".join(problems))


def generate_texts(options: GenerateOptions) -> None:
    """Writes the texts to the output, or to standard output; a single one token by token.

    Raises:
        ValueError: no such checkpoint or tokenizer, or options that do not fit.
        OSError: a file that cannot be read or written.
    """
    options.check()
    records = [{"prompt": options.prompt}] if options.prompts is None else read_prompts(options.prompts)

    from ingot.launcher.loading.language_model import load_for_inference
    from ingot.launcher.runtime.device import in_dtype, open_device

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
    from ingot.model.generation.generate import check, complete

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
    from ingot.model.generation.generate import generate

    ids = prompt_ids(options, record, tokenizer)
    pieces = generate(model, [ids], sampling_of(options, tokenizer), decode=decoder(tokenizer))
    print(record["prompt"], end="", flush=True)
    for piece in pieces:
        if piece.text:
            print(piece.text, end="", flush=True)
    print()


def sampling_of(options: GenerateOptions, tokenizer):
    from ingot.model.generation.generate import Sampling

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
    from ingot.model.generation.generate import fill_mask

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


def main(argv: list[str]) -> int:
    with bad_input():
        options = parse(GenerateOptions, spread_lists(argv, ("stop",)), __doc__)
        generate_texts(options)
    return DONE


if __name__ == "__main__":
    run_main(main)
