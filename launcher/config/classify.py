"""Options of launcher/classify.py."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ingot.launcher.config.schema.types import NonNegativeCount, Range, Seed


@dataclass(frozen=True)
class ClassifyOptions:
    """The texts, the question about them, and the labels."""

    checkpoint: str
    """A run, a checkpoint, or a Hugging Face folder of a language model: a GPT, or a BERT with its masked head."""
    input: str
    """File of the texts: .tsv, .csv, .jsonl, .json, .parquet, or what datasets saved."""
    template: str
    """A text with {COLUMN} for each column of the file that it uses, and {label} for the words of the label."""
    labels: list[str]
    """Each label and its words, as LABEL=WORDS."""
    label_column: str | None = None
    """Column of the true label. With it, the scores are printed too."""
    examples: str | None = None
    """File of labelled examples, with the same columns. Some of them are put before each text (few-shot)."""
    shots: Annotated[int, Range(0, 10**4)] = 0
    """Number of examples of each label before each text."""
    separator: str = "\n\n"
    """Text between two examples."""
    calibrate: bool = False
    """Subtract from each label's score the score that it gets for texts without content (Zhao et al. 2021)."""
    normalize: Literal["sum", "mean"] = "sum"
    """How the log-likelihoods of several tokens are combined: sum, or mean, which favours short words less."""
    limit: NonNegativeCount = 0
    """Number of texts to read; 0 reads all."""
    seed: Seed = 1234
    """Seed of the choice of examples."""
    output: str | None = None
    """File for the predictions, one JSON object per line; by default standard output."""
    tokenizer: str | None = None
    """Tokenizer folder; by default the one beside the weights."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, ..."""

    def words(self) -> dict[str, str]:
        """The words of each label."""
        found = {}
        for part in self.labels:
            label, equals, words = part.partition("=")
            found[label] = words if equals else label
        return found

    def check(self) -> None:
        """Looks for mistakes that can be seen without the model.

        Raises:
            ValueError: all problems at once.
        """
        problems = []
        if len(self.words()) < 2:
            problems.append(f"labels are {', '.join(self.words())}; give two or more, as LABEL=WORDS")
        if self.shots and (self.examples is None or self.label_column is None):
            problems.append("shots needs examples, a file, and label_column, its column of true labels")
        if problems:
            raise ValueError("; ".join(problems))
