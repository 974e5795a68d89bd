"""How many sequences each optimizer step has: the sizes of `batch.ramp` one after the other, then `batch.global_size`.

Steps are numbered from 1. A slot is a place in the data order; steps take them one after the other.
"""

from collections.abc import Iterator

from ingot.launcher.config.pretrain import Batch


def phases(batch: Batch) -> Iterator[tuple[int, int | None, int]]:
    """(steps before it, its number of steps, its size) of each phase; the last one has None: it never ends."""
    before = 0
    for phase in batch.ramp:
        yield before, phase.steps, phase.global_size
        before += phase.steps
    yield before, None, batch.global_size


def slots_of(batch: Batch, steps: int) -> int:
    """Slots that the first `steps` steps take together."""
    total = 0
    for before, length, size in phases(batch):
        within = max(0, steps - before)
        total += size * (within if length is None else min(within, length))
    return total


def size_of(batch: Batch, step: int) -> tuple[int, int | None]:
    """The size of a step, and the last step that has it in this phase (None: for ever)."""
    for before, length, size in phases(batch):
        if length is None or step <= before + length:
            return size, None if length is None else before + length
    raise AssertionError("the last phase never ends")


def largest(batch: Batch) -> int:
    return max(size for _, _, size in phases(batch))
