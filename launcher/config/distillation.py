"""What a run, of pretraining or fine-tuning, learns from another model."""

from dataclasses import dataclass


@dataclass
class Distillation:
    """A model whose answers are learned besides what the data say (Hinton et al. 2015)."""

    teacher: str | None = None
    """A run, a checkpoint or a Hugging Face folder with the same tokenizer, and to fine-tune the same task and labels.
    It stands whole on each rank."""
    weight: float = 0.5
    """Share of the teacher's answers in the loss; the rest is that of the data."""
    temperature: float = 2.0
    """By which both models' logits are divided where they are compared."""
    hidden_weight: float = 0.0
    """Weight of the squared difference from the teacher's last hidden states, which must be as wide."""

    def problems(self, tensor_ranks: int) -> list[str]:
        """What it cannot do, and values that mean nothing."""
        problems = []
        if not 0 <= self.weight <= 1:
            problems.append(f"distillation.weight is {self.weight}; it must lie between 0 and 1")
        if self.temperature <= 0:
            problems.append(f"distillation.temperature is {self.temperature}; it must be positive")
        if self.teacher is not None and tensor_ranks > 1:
            problems.append("distillation needs the whole vocabulary on a rank; set parallel.tensor to 1")
        return problems
