"""What launcher/generate.py can be told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


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
