"""Options of launcher/generate.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ingot.launcher.config.schema.types import (
    ClosedUnitInterval,
    NonNegativeFloat,
    PositiveCount,
    PositiveFloat,
    PositiveShare,
    Range,
    Seed,
    Size,
)


@dataclass(frozen=True)
class GenerateOptions:
    """The model, the prompts, and how tokens are drawn."""

    checkpoint: str
    """A run folder (the newest intact checkpoint is used), a checkpoint folder, or a Hugging Face folder."""
    prompt: str = ""
    """The text to continue; empty begins a document. For a BERT, a text with <mask> where a token is wanted."""
    prompts: str | None = None
    """File of prompts instead: one per line, or .jsonl with "prompt" (or "messages") in each object."""
    output: str | None = None
    """File for the texts, .jsonl, one object each; by default they are printed."""
    max_tokens: Size = 64
    """Maximum number of new tokens. A text ends earlier where the model ends the document."""
    temperature: NonNegativeFloat = 0.8
    """The logits are divided by this; 0 always takes the most likely token."""
    top_k: PositiveCount | None = None
    """Draw only from the k most likely tokens. For a BERT: how many tokens to print for a mask, by default 5."""
    top_p: PositiveShare | None = None
    """Draw only from the smallest set of most likely tokens that together have this probability."""
    min_p: ClosedUnitInterval | None = None
    """Draw only from tokens whose probability is at least this share of the most likely token's."""
    repetition_penalty: PositiveFloat = 1.0
    """For tokens that are already in the text, positive logits are divided by this and negative ones multiplied; 1
    changes nothing."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a text; they are not part of it: --stop Q: A:, or, as JSON, --stop '["\\n\\n", "[END]"]'."""
    num_samples: Size = 1
    """How many texts to write for each prompt."""
    seed: Seed = 0
    """Seed of the draws. Each text has its own random numbers, so the batch size has no influence."""
    batch_size: Annotated[int, Range(1, 10**5)] = 16
    """How many texts are computed at a time."""
    mark_start: bool = True
    """Put the begin-of-document token before each prompt, as in training."""
    chat: bool = False
    """A prompt is what a user says in a chat: the tokenizer's chat template is put around it, and the answer is
    written. An object of a .jsonl file can have "messages" instead of "prompt", which are a chat always."""
    tokenizer: str | None = None
    """Tokenizer folder; by default the one in the run's folder."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, ..."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and computation."""
    compile: bool = False
    """Compile the computation of a token, on a GPU as a CUDA graph. The first text takes a minute longer; after it a
    token of a small batch takes much less time."""

    def check(self) -> None:
        """Looks for mistakes that can be seen without the model.

        Raises:
            ValueError: all problems at once.
        """
        problems = []
        if self.prompt and self.prompts is not None:
            problems.append("prompt and prompts are both given; leave one out")
        if self.output is not None and not Path(self.output).absolute().parent.is_dir():
            problems.append(f"the folder of output {self.output} does not exist")
        if problems:
            raise ValueError("; ".join(problems))
