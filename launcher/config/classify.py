"""What launcher/classify.py can be told."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class ClassifyOptions:
    """What to ask of which texts."""

    checkpoint: str
    """A run, a checkpoint, or a Hugging Face folder of a language model: a GPT, or a BERT with its masked head."""
    input: str
    """File of the texts: .tsv, .csv, .jsonl, .json, .parquet, or what datasets saved."""
    template: str
    """A text with slots {COLUMN} for columns of the file, and {label} where a label's words stand."""
    labels: list[str]
    """Each label and its words, as LABEL=WORDS."""
    label: str | None = None
    """Column of the true label: prints the scores beside the predictions."""
    examples: str | None = None
    """File of examples with that column, of which some stand before each text."""
    shots: int = 0
    """Examples of each label that stand before each text."""
    separator: str = "\n\n"
    """What stands between examples."""
    calibrate: bool = False
    """Take off each label's score what it gets from texts that say nothing (Zhao et al. 2021)."""
    normalise: Literal["sum", "mean"] = "sum"
    """Likelihood of words of several tokens: their sum, or their mean, which favours long ones less."""
    limit: int = 0
    """Texts to read; 0 reads all."""
    seed: int = 1234
    """Of the choice of examples."""
    output: str | None = None
    """File for the predictions, a JSON object a line; by default standard output."""
    tokenizer: str | None = None
    """Tokenizer folder; by default the one beside the weights."""
    device: str = "cpu"
    """Where to compute, in torch's words."""

    def words(self) -> dict[str, str]:
        """The words of each label."""
        return dict(part.split("=", 1) if "=" in part else (part, part) for part in self.labels)

    def check(self) -> None:
        """Looks for what needs no model to be seen as wrong.

        Raises:
            ValueError: all problems at once.
        """
        problems = []
        if len(self.words()) < 2:
            problems.append(f"labels are {', '.join(self.words())}; give two or more, as LABEL=WORDS")
        if self.shots and (self.examples is None or self.label is None):
            problems.append("shots needs examples, a file, and label, its column of true labels")
        if problems:
            raise ValueError("; ".join(problems))
