"""Times steps of two ranks whose host network is slow: python -m tests.launcher.training.steps_over_network

A step is a sleep of COMPUTE seconds, as if a device computed and its own network was fast. Rank 0 prints, as JSON, the
median seconds of a step whose numbers are summed before it, and of one that is agreed on ahead.
"""

import json
import statistics
import time
from types import SimpleNamespace

import numpy as np

from ingot.data.corpus.quarantine import Quarantine
from ingot.data.loader.reader import StepBatch
from ingot.launcher.training import step_ahead
from ingot.launcher.training.bad_data import BadDataWatch
from ingot.launcher.training.batch_sizes import BatchSizes
from ingot.launcher.training.callbacks.callback import Callbacks
from ingot.launcher.training.progress import Progress
from ingot.model.config import ModelConfig
from ingot.parallel import mesh as meshes

COMPUTE = 0.1
STEPS = 8
MODEL = ModelConfig(vocab_size=16, num_hidden_layers=1, num_attention_heads=1, hidden_size=8)


class CountingReader:
    """A step of `size` slots for each `size` slots. `on_read` is called with the step's first slot."""

    def __init__(self, on_read=lambda cursor: None):
        self.on_read, self.read = on_read, []

    def steps(self, cursor, stop, size):
        for first in range(cursor, stop, size):
            self.read.append(first)
            self.on_read(first)
            ids = np.full((1, 2), first)
            micro_batch = {"input_ids": ids, "labels": ids, "cu_seqlens": np.array([0, 2], dtype=np.int32)}
            yield StepBatch([micro_batch], size, first, size, first + size)


def ahead_of(mesh, reader, quarantine, *, ramp=(), votes=list):
    job = SimpleNamespace(
        engine=SimpleNamespace(mesh=mesh), reader=reader, batch_sizes=BatchSizes(4, ramp), model=MODEL, task=None
    )
    watch = BadDataWatch(quarantine, Callbacks(), None, max_bad_fraction=1.0)
    return step_ahead.StepsAhead(job, watch, votes), watch


def main() -> None:
    mesh = meshes.start("cpu", 60)
    before, ahead = [], []
    for _ in range(STEPS):
        start = time.perf_counter()
        meshes.sum_over_ranks([1])
        time.sleep(COMPUTE)
        before.append(time.perf_counter() - start)
    progress, start = Progress(), time.perf_counter()
    for step in ahead_of(mesh, CountingReader(), Quarantine())[0].steps(progress, STEPS):
        progress.step, progress.cursor = progress.step + 1, step.batch.cursor
        time.sleep(COMPUTE)
        ahead.append(time.perf_counter() - start)
        start = time.perf_counter()
    meshes.sum_over_ranks([1])
    if mesh.is_main:
        print(json.dumps({"before": statistics.median(before), "ahead": statistics.median(ahead)}))
    meshes.stop()


if __name__ == "__main__":
    main()
