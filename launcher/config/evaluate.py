"""Options of launcher/evaluate.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ingot.launcher.config.schema.types import NonNegativeCount, OpenUnitInterval, Range, Seed, Size


@dataclass(frozen=True)
class EvaluateOptions:
    """The model and the texts to score it on. Options that are not given are those of the training run."""

    checkpoint: str
    """A run folder (the newest intact checkpoint is used), a checkpoint folder, or a Hugging Face folder."""
    corpus: list[str] = field(default_factory=list)
    """Corpus folders; they are scored together."""
    split: str = "validation"
    """Split of the corpora."""
    text: list[str] = field(default_factory=list)
    """Text files instead of corpora, one document each, or .jsonl files with "text" in each object."""
    sequence_length: Size | None = None
    """Number of tokens in a sequence; by default as in training. For a Hugging Face folder the model's maximum, but at
    most 1024."""
    stride: Size | None = None
    """Read each document in windows of sequence_length tokens; the next window starts stride tokens later. Each token
    is scored once, with at least sequence_length - stride tokens before it. By default half of sequence_length for text
    files. A corpus is by default read as in training, without windows."""
    max_samples: NonNegativeCount = 0
    """Number of sequences to read from each corpus, if stride is not given; 0 reads all."""
    mlm_probability: OpenUnitInterval | None = None
    """For a BERT: share of the tokens that are masked; by default as in training, or 0.15."""
    seed: Seed | None = None
    """For a BERT: seed of the choice of masked tokens; by default as in training, or 1234."""
    batch_size: Annotated[int, Range(1, 10**5)] = 8
    """Number of sequences that are computed at a time."""
    output: str | None = None
    """File for the scores, .json; by default they are printed as one line of JSON."""
    tokenizer: str | None = None
    """Tokenizer folder; by default the one in the run's folder."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, ..."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of weights and computation; by default as in training, or float32."""

    def check(self) -> None:
        """Looks for mistakes that can be seen without the model.

        Raises:
            ValueError: all problems at once.
        """
        problems = []
        if bool(self.corpus) == bool(self.text):
            problems.append(f"{'both' if self.text else 'neither'} of corpus and text are given; give one of them")
        if self.max_samples and (self.stride is not None or self.text):
            problems.append("max_samples counts sequences as in training, so it goes without stride and text")
        if self.output is not None and not Path(self.output).absolute().parent.is_dir():
            problems.append(f"the folder of output {self.output} does not exist")
        if problems:
            raise ValueError("; ".join(problems))
