"""The sections optimizer and loss."""

from dataclasses import dataclass, field
from typing import Literal

from ingot.launcher.config.parallel import Parallel
from ingot.launcher.config.schema.types import (
    ClosedUnitInterval,
    NonNegativeCount,
    NonNegativeFloat,
    PositiveCount,
    PositiveFloat,
    UnitIntervalBelowOne,
)


@dataclass(frozen=True)
class Optimizer:
    """The optimizer and its learning-rate schedule."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon uses Muon for muon_matrices and AdamW for the rest, with one learning rate. It needs whole matrices: engine
    fsdp, or ZeRO-0, and parallel.tensor 1."""
    muon_matrices: list[str] = field(default_factory=lambda: ["blocks.*.attention.*.weight", "blocks.*.mlp.*.weight"])
    """Names of the matrices that Muon trains; * stands for one part of a name."""
    momentum: UnitIntervalBelowOne = 0.95
    """Momentum of Muon; AdamW does not use it."""
    learning_rate: PositiveFloat = 6e-4
    """Learning rate at its peak, after the warm-up."""
    betas: tuple[UnitIntervalBelowOne, UnitIntervalBelowOne] = (0.9, 0.95)
    """Decay rates of Adam's two moments."""
    eps: PositiveFloat = 1e-8
    """Added to the square root of the second moment."""
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type in which AdamW keeps its two moments. bf16 saves 4 bytes a parameter. Weights stay fp32, and an update is
    computed in fp32. A run may change it at a resume: the moments of the checkpoint are converted."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of matrices and embedding tables; norms and biases have none."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down if their global norm is above this; 0 turns clipping off."""
    schedule: Literal["constant", "cosine", "linear", "wsd", "inverse_sqrt"] = "cosine"
    """Shape of the schedule after the warm-up. wsd stays at the peak, then decays as 1 - sqrt. inverse_sqrt never
    ends."""
    warmup_steps: NonNegativeCount = 100
    """Steps of linear warm-up from 0. The first step of a warm-up has the rate 0, as in transformers."""
    lr_decay_steps: PositiveCount | None = None
    """Step at which the schedule ends; after it the rate stays at its minimum. By default run.steps."""
    min_lr_ratio: ClosedUnitInterval = 0.1
    """Minimum of the schedule, as a fraction of the peak."""
    lr_decay_ratio: ClosedUnitInterval = 0.2
    """Share of the schedule in which wsd decays."""

    def problems(self, parallel: "Parallel") -> list[str]:
        """Where moments in bf16 do not go."""
        if self.state_dtype == "fp32":
            return []
        problems = []
        if self.kind != "adamw":
            problems.append(f"optimizer.state_dtype {self.state_dtype} is for optimizer.kind adamw; set it to fp32")
        if parallel.offload_dir is not None:
            problems.append(
                f"optimizer.state_dtype {self.state_dtype} does not go with parallel.offload_dir, to which DeepSpeed "
                f"swaps fp32 states; set it to fp32, or leave parallel.offload_dir out"
            )
        return problems

    def warmup_notes(self, steps: int) -> list[str]:
        """What a user should know of a warm-up that a run of `steps` steps, or its schedule, does not get past."""
        warmup, end = self.warmup_steps, self.lr_decay_steps or steps
        if warmup >= steps:
            highest = self.learning_rate * (steps - 1) / warmup
            return [
                f"the warm-up (optimizer.warmup_steps {warmup}) is not over before the end of the run ({steps} steps): "
                f"the highest learning rate is {highest:.3g} instead of {self.learning_rate:.3g}"
                + ("" if highest else ", and nothing is learned")
                + "; lower optimizer.warmup_steps"
            ]
        if warmup >= end and self.schedule not in ("constant", "inverse_sqrt"):
            return [
                f"the schedule ends at step {end} (optimizer.lr_decay_steps), before the warm-up of {warmup} steps "
                f"(optimizer.warmup_steps) is over: after it the learning rate falls to its minimum at once"
            ]
        return []


@dataclass(frozen=True)
class Loss:
    """Terms that are added to the training loss. The loss of an evaluation does not contain them."""

    z_loss: NonNegativeFloat = 0.0
    """Weight of the square of the logits' log-sum-exp (PaLM uses 1e-4); 0 adds nothing."""
    label_smoothing: UnitIntervalBelowOne = 0.0
    """Share of each target's probability that is spread over all tokens or classes."""
