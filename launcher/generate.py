"""Continues a text with a trained GPT, or fills the masks of a text with a trained BERT.

python launcher/generate.py --checkpoint runs/demo --prompt "def " --max_tokens 64 --top_p 0.9
python launcher/generate.py --checkpoint runs/demo-bert --prompt "import <mask>"
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if (
    __name__ == "__main__"
):  # as a script, the repository leads the import path, not launcher/, whose files could hide libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher.cli import parse
from launcher.exits import DONE, bad_input, run_main

MASK = "<mask>"


@dataclass
class GenerateOptions:
    """What to write, and how."""

    checkpoint: str
    """A run folder (its newest sound checkpoint is taken) or a checkpoint folder."""
    prompt: str = ""
    """The text to continue; empty begins a document. For a BERT, a text with <mask> where a token is wanted."""
    max_tokens: int = 64
    """Tokens to write at most; the end of the document ends it earlier."""
    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the smallest set of likeliest tokens that holds this probability only."""
    num_samples: int = 1
    """How many texts to write, with seeds seed, seed + 1, ..."""
    seed: int = 0
    """Of the draws."""
    tokenizer: str | None = None
    """Tokenizer folder; by default the one in the run's folder."""
    device: str = "cpu"
    """Where to compute, in torch's words."""


def generate_texts(options: GenerateOptions) -> None:
    """Writes the texts to standard output, token by token.

    Raises:
        ValueError: no such checkpoint or tokenizer, or options that do not fit.
    """
    import torch

    from launcher.inference import load_for_inference
    from model.generation import fill_mask, generate

    model, tokenizer = load_for_inference(options.checkpoint, options.tokenizer, torch.device(options.device))
    if not model.config.causal:
        _fill(options, model, tokenizer, fill_mask)
        return
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = start + tokenizer.encode(options.prompt)
    for number in range(options.num_samples):
        if number:
            print("\n" + "-" * 40)
        stream = generate(
            model,
            ids,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed + number,
            eos_id=tokenizer.eos_id,
        )
        # A character may take several tokens, so the text so far is decoded anew and only what is settled is shown.
        new_ids, shown = [], 0
        print(options.prompt, end="", flush=True)
        for token in stream:
            new_ids.append(token)
            text = tokenizer.decode(new_ids)
            if not text.endswith("\ufffd"):
                print(text[shown:], end="", flush=True)
                shown = len(text)
        print(tokenizer.decode(new_ids)[shown:], flush=True)


def _fill(options: GenerateOptions, model, tokenizer, fill_mask) -> None:
    parts = options.prompt.split(MASK)
    if len(parts) < 2:
        raise ValueError(f"the prompt of a BERT needs {MASK} where a token is wanted, and has none: {options.prompt!r}")
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for number, part in enumerate(parts):
        ids += ([tokenizer.mask_id] if number else []) + tokenizer.encode(part)
    ids += [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for number, candidates in enumerate(fill_mask(model, ids, tokenizer.mask_id, options.top_k or 5), start=1):
        words = ", ".join(f"{tokenizer.decode([token])!r} {probability:.3f}" for token, probability in candidates)
        print(f"mask {number}: {words}")


def main(argv: list[str]) -> int:
    with bad_input():
        options = parse(GenerateOptions, argv, __doc__)
        generate_texts(options)
    return DONE


if __name__ == "__main__":
    run_main(main)
