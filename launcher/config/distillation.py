"""Options of distillation, in pretraining and in fine-tuning: what a run learns from another model."""

from dataclasses import dataclass

from ingot.launcher.config.schema.types import ClosedUnitInterval, NonNegativeFloat, PositiveFloat


@dataclass(frozen=True)
class Distillation:
    """A larger model, the teacher, whose outputs the model learns to match, together with the data (Hinton et al.
    2015)."""

    teacher: str | None = None
    """A run, a checkpoint or a Hugging Face folder. It must have the same tokenizer; for fine-tuning also the same task
    and labels. Each rank holds all of it."""
    weight: ClosedUnitInterval = 0.5
    """Weight of the teacher's outputs in the loss. The rest, 1 - weight, is the loss on the data."""
    temperature: PositiveFloat = 2.0
    """The logits of both models are divided by this before they are compared."""
    hidden_weight: NonNegativeFloat = 0.0
    """Weight of the squared difference from the teacher's last hidden states. The teacher must have the same
    hidden_size."""

    def problems(self, tensor_ranks: int) -> list[str]:
        """Combinations that distillation does not support."""
        if self.teacher is not None and tensor_ranks > 1:
            return ["distillation needs the whole vocabulary on a rank; set parallel.tensor to 1"]
        return []
