"""What a run trains, on which data: all in which pretraining and fine-tuning differ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ingot.data.corpus.quarantine import Quarantine
from ingot.data.loader.reader import Reader
from ingot.data.tasks.reader import TaskReader
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.training.batch_sizes import BatchSizes
from ingot.launcher.training.callbacks.callback import Callback, Callbacks
from ingot.launcher.training.progress import Progress
from ingot.model.config import ModelConfig
from ingot.parallel.engines.engine import Batch, Engine


@dataclass(frozen=True)
class RunContext:
    """What callbacks of a job may need of the run, once its folder is open."""

    folder: Path
    progress: Progress
    callbacks: Callbacks
    metadata: dict
    """What the run's checkpoints say besides the progress."""


def no_callbacks(context: RunContext) -> list[Callback]:
    return []


def no_inputs(micro_batch: dict[str, np.ndarray], num_targets: int, num_sequences: int) -> Batch:
    return {}


@dataclass(frozen=True)
class Job:
    """What a run trains, on which data."""

    config: TrainConfig | FinetuneConfig
    """Complete: nothing in it is automatic any more but the device."""
    tokenizer: Tokenizer
    model: ModelConfig
    engine: Engine
    reader: Reader | TaskReader
    batch_sizes: BatchSizes
    data_stamp: dict
    """Plain JSON: what, besides the slot number, decides what a sequence is. A resume compares it."""
    flops_per_token: float
    """Of forward and backward, for the reported TFLOP/s and MFU."""
    evaluate: Callable[[], dict] | None = None
    """Called between steps on each rank; returns the scores of an eval record. None: there is no evaluation."""
    validation_readers: Sequence[Reader] = ()
    """Readers of the evaluation that may meet damaged data."""
    loss_inputs: Callable[[dict[str, np.ndarray], int, int], Batch] = no_inputs
    """From a micro-batch, and the targets and sequences of the whole step, to further arguments of the model."""
    callbacks: Callable[[RunContext], list[Callback]] = no_callbacks
    """The callbacks of this kind of run, besides the loggers."""
    quarantine: Quarantine = field(default_factory=Quarantine)
    max_bad_fraction: float = 0.0
    allow_changed: bool | None = None
    """Whether a resume may read other data; None where there is no such option."""
    init_from: str | None = None
    """A run, checkpoint or Hugging Face folder for the first weights of a run without checkpoints."""
    metadata: dict = field(default_factory=dict)
    """What the checkpoints say of this kind of run."""
    messages: Sequence[str] = ()
    """What the log says at the start."""
