"""A job: what a run trains, and on which data. Pretraining and fine-tuning differ only in their jobs."""

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
from ingot.model.finetuning.task_model import TaskConfig
from ingot.parallel.engines.engine import Batch, Engine


@dataclass(frozen=True)
class RunContext:
    """What the callbacks of a job can use, once the folder of the run is open."""

    folder: Path
    progress: Progress
    callbacks: Callbacks
    metadata: dict
    """What the checkpoints of the run contain in addition to the progress."""
    is_new_branch: bool = False
    """Whether the run has left another branch behind, whose results must not be lost."""


def no_callbacks(context: RunContext) -> list[Callback]:
    """For a job without callbacks."""
    return []


def no_inputs(micro_batch: dict[str, np.ndarray], num_targets: int, num_sequences: int) -> Batch:
    """For a job whose model needs no further arguments."""
    return {}


@dataclass(frozen=True)
class Job:
    """What a run trains, and on which data."""

    config: TrainConfig | FinetuneConfig
    """Complete: only the device may still be `auto`."""
    tokenizer: Tokenizer
    model: ModelConfig
    engine: Engine
    reader: Reader | TaskReader
    batch_sizes: BatchSizes
    data_stamp: dict
    """Plain JSON: all that determines the sequence at a slot of the data order. A resume compares it."""
    flops_per_token: float
    """FLOPs of forward and backward for one token, for the reported TFLOP/s and MFU."""
    task: TaskConfig | None = None
    """The task's head of the model, for the FLOPs that are really needed. None: it is a language model."""
    evaluate: Callable[[], dict] | None = None
    """Called between two steps on each rank; it returns the scores. None: the run has no evaluation."""
    validation_readers: Sequence[Reader] = ()
    """The readers of the evaluation that can find damaged data."""
    loss_inputs: Callable[[dict[str, np.ndarray], int, int], Batch] = no_inputs
    """From a micro-batch, and the numbers of targets and sequences of the step, to further arguments of the model."""
    callbacks: Callable[[RunContext], list[Callback]] = no_callbacks
    """The callbacks of this kind of run, in addition to the loggers."""
    quarantine: Quarantine = field(default_factory=Quarantine)
    """What the readers skip because it is damaged."""
    max_bad_fraction: float = 0.0
    """See data.max_bad_fraction."""
    allow_changed: bool | None = None
    """Whether a resume may read other data (data.allow_changed); None for a run without that option."""
    init_from: str | None = None
    """A run, a checkpoint or a Hugging Face folder with the initial weights of a run without checkpoints."""
    metadata: dict = field(default_factory=dict)
    """What the checkpoints of this kind of run contain in addition."""
    is_packed: bool = True
    """Whether rows have several documents that do not see each other."""
    messages: Sequence[str] = ()
    """Lines of the log at the start."""
