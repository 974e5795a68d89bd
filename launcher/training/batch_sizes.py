"""The number of sequences of each optimizer step: first the sizes of a ramp, then the final size."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSizes:
    """Global batch sizes as a function of the step. Steps are counted from 1. A slot is a
    position in the order of the data.

    Attributes:
        final: sequences of each step after the ramp, over all ranks.
        ramp: (number of steps, sequences of each step) of each phase before the final size.
    """

    final: int
    ramp: tuple[tuple[int, int], ...] = ()

    @property
    def largest(self) -> int:
        """Sequences of the largest step."""
        return max([self.final, *(size for _, size in self.ramp)])

    def size_at(self, step: int) -> tuple[int, int | None]:
        """The size of a step, and the last step of its phase (None for the final size, which has no end)."""
        for before, steps, size in self._phases():
            if step <= before + steps:
                return size, before + steps
        return self.final, None

    def slots_before(self, step: int) -> int:
        """The number of slots that all steps before `step` read."""
        done, total, ramped = step - 1, 0, 0
        for before, steps, size in self._phases():
            total += size * min(max(0, done - before), steps)
            ramped = before + steps
        return total + self.final * max(0, done - ramped)

    def steps_for(self, slots: int) -> int:
        """The number of steps after which at least `slots` slots are read."""
        left, steps = slots, 0
        for _, most, size in self._phases():
            needed = min(most, -(-max(0, left) // size))
            left, steps = left - needed * size, steps + needed
        return steps + -(-max(0, left) // self.final)

    def _phases(self) -> Iterator[tuple[int, int, int]]:
        """For each phase of the ramp: the steps before it, its number of steps, and its size."""
        before = 0
        for steps, size in self.ramp:
            yield before, steps, size
            before += steps
