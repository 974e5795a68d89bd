"""How many sequences each optimizer step has: the sizes of a ramp one after the other, then the final size."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSizes:
    """Global batch sizes as a function of the step. Steps are numbered from 1; a slot is a place in the data order.

    Attributes:
        final: sequences of each step after the ramp, over all ranks.
        ramp: (number of steps, sequences of each) of the phases before.
    """

    final: int
    ramp: tuple[tuple[int, int], ...] = ()

    @property
    def largest(self) -> int:
        return max([self.final, *(size for _, size in self.ramp)])

    def size_at(self, step: int) -> tuple[int, int | None]:
        """The size of a step, and the last step of its phase (None: the final size has no end)."""
        for before, steps, size in self._phases():
            if step <= before + steps:
                return size, before + steps
        return self.final, None

    def slots_before(self, step: int) -> int:
        """How many slots the steps before `step` take together."""
        done, total, ramped = step - 1, 0, 0
        for before, steps, size in self._phases():
            total += size * min(max(0, done - before), steps)
            ramped = before + steps
        return total + self.final * max(0, done - ramped)

    def _phases(self) -> Iterator[tuple[int, int, int]]:
        """(steps before it, its number of steps, its size) of each phase of the ramp."""
        before = 0
        for steps, size in self.ramp:
            yield before, steps, size
            before += steps
