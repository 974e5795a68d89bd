"""What launcher/predict.py can be told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass
class PredictOptions:
    """What to read, and where to write."""

    checkpoint: str
    """A fine-tuning run (its best checkpoint is taken, or its newest where none was scored) or a checkpoint folder."""
    input: str | None = None
    """A file of the task's format; a label column is not needed."""
    text: list[str] = field(default_factory=list)
    """One example instead of a file: a value for each of task.text_columns; for tagging one sentence."""
    output: str | None = None
    """File for the predictions, a JSON object a line; by default standard output."""
    score: bool = False
    """The input has labels: print the scores and the report instead of predictions, or beside an output file."""
    probabilities: bool = True
    """Give the probability of each label, by its name, or of each choice, in their order."""
    int8: Literal["none", "weights", "dynamic"] = "none"
    """Compute with the blocks' matrices in int8, by torchao: weights alone, or dynamic, activations too."""
    micro_tokens: int = 4096
    """Most tokens that are computed at a time."""
    max_tokens: int = 256
    """Most tokens that generation writes for an example."""
    tokenizer: str | None = None
    """Tokenizer folder; by default the one in the run's folder."""
    device: str = "cpu"
    """Where to compute, in torch's words."""

    def check(self) -> None:
        """Looks for what needs no model to be seen as wrong.

        Raises:
            ValueError: all problems at once.
        """
        problems = []
        if (self.input is None) == (not self.text):
            problems.append("give either input, a file, or text, one example")
        if self.score and self.input is None:
            problems.append("score needs an input with labels")
        if self.output is not None and not Path(self.output).absolute().parent.is_dir():
            problems.append(f"the folder of output {self.output} does not exist")
        if problems:
            raise ValueError("; ".join(problems))
