"""The number of steps of a pretraining run, from whichever of steps, epochs and tokens is given."""

import math
from collections.abc import Sequence
from dataclasses import replace

from ingot.data.corpus.shards import Corpus
from ingot.data.sequences.packings import make_packings
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.training.build import batch_sizes

DEFAULT_STEPS = 1000


def with_steps(config: TrainConfig, corpora: Sequence[Corpus]) -> TrainConfig:
    """The configuration with `run.steps`, and without `run.epochs` and `run.tokens`.

    Args:
        corpora: those of data.train; only `run.epochs` needs them.

    Raises:
        ValueError: the run would be longer than 10^9 steps.
    """
    run, data = config.run, config.data
    steps = run.steps or DEFAULT_STEPS
    sizes = batch_sizes(config.batch)
    if run.tokens is not None:
        steps = sizes.steps_for(-(-run.tokens // data.sequence_length))
    if run.epochs is not None:
        packings = make_packings(corpora, data.packing, data.sequence_length)
        num_instances = sum(int(packing.shard_instances.sum()) for packing in packings)
        steps = sizes.steps_for(math.ceil(run.epochs * num_instances))
    if steps > 10**9:
        raise ValueError(f"the run would be {steps:,} steps long, and 10^9 are the most; lower its epochs or tokens")
    return replace(config, run=replace(run, steps=max(1, steps), epochs=None, tokens=None))
