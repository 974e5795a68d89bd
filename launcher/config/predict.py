"""Options of launcher/predict.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ingot.launcher.config.schema.types import Size


@dataclass(frozen=True)
class PredictOptions:
    """The model, its input, and where the predictions go."""

    checkpoint: str
    """A fine-tuning run (its best checkpoint is used, or the newest if none was scored) or a checkpoint folder."""
    input: str | None = None
    """A file of the task's format; a label column is not needed."""
    text: list[str] = field(default_factory=list)
    """One example instead of a file: a value for each of task.text_columns; for token_classification one sentence."""
    output: str | None = None
    """File for the predictions, one JSON object per line; by default standard output."""
    score: bool = False
    """The input has labels: print scores and a report. The predictions are then written only if output is given."""
    probabilities: bool = True
    """Write the probability of each label by its name, or of each choice in the order of the choices."""
    int8: Literal["none", "weights", "dynamic"] = "none"
    """Compute with the matrices of the blocks in int8 (torchao). weights: only the weights. dynamic: activations
    too."""
    micro_tokens: Size = 4096
    """Maximum number of tokens that are computed at a time."""
    max_tokens: Size = 256
    """Maximum number of new tokens for an example, for tasks that generate text."""
    tokenizer: str | None = None
    """Tokenizer folder; by default the one in the run's folder."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, ..."""

    def check(self) -> None:
        """Looks for mistakes that can be seen without the model.

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
