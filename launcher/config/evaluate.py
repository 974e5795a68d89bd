"""What launcher/evaluate.py can be told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass
class EvaluateOptions:
    """What to score, and how. What is not given is as it was in the training of a run."""

    checkpoint: str
    """A run folder (its newest sound checkpoint is taken), a checkpoint folder, or a Hugging Face folder."""
    corpus: list[str] = field(default_factory=list)
    """Corpus folders, scored together."""
    split: str = "validation"
    """Which split of the corpora."""
    text: list[str] = field(default_factory=list)
    """Text files instead, each of them a document, or .jsonl files with "text" in each object."""
    sequence_length: int | None = None
    """Tokens of a sequence. By default as in training; for a Hugging Face folder what the model can, up to 1024."""
    stride: int | None = None
    """Read each document in windows of sequence_length that begin so many tokens apart, each token being scored once,
    with at least sequence_length - stride tokens before it. By default half of sequence_length for text files, while a
    corpus is read as in training, where a sequence's first tokens have little before them."""
    max_samples: int = 0
    """Sequences to read of each corpus, without stride; 0 reads all."""
    mlm_probability: float | None = None
    """Share of the tokens that are targets, for a BERT; by default as in training, or 0.15."""
    seed: int | None = None
    """Which tokens are targets, for a BERT, follows from it; by default as in training, or 1234."""
    batch_size: int = 8
    """Sequences that are computed at a time."""
    output: str | None = None
    """File for the scores, .json; by default they are printed as a line of JSON."""
    tokenizer: str | None = None
    """Tokenizer folder; by default the one in the run's folder."""
    device: str = "cpu"
    """Where to compute, in torch's words."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the weights and of the computation; by default as in training, or float32."""

    def check(self) -> None:
        """Looks for what needs no model to be seen as wrong.

        Raises:
            ValueError: all problems at once.
        """
        problems = []
        if bool(self.corpus) == bool(self.text):
            problems.append(f"{'both' if self.text else 'neither'} of corpus and text are given; give one of them")
        for name in ("sequence_length", "stride", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} is {value}; it must be at least 1")
        if self.max_samples < 0:
            problems.append(f"max_samples is {self.max_samples}; it must be positive, or 0 for all")
        if self.max_samples and (self.stride is not None or self.text):
            problems.append("max_samples counts sequences as in training, so it goes without stride and text")
        if self.mlm_probability is not None and not 0 < self.mlm_probability < 1:
            problems.append(f"mlm_probability is {self.mlm_probability}; it must lie between 0 and 1")
        if self.output is not None and not Path(self.output).absolute().parent.is_dir():
            problems.append(f"the folder of output {self.output} does not exist")
        if problems:
            raise ValueError("; ".join(problems))
