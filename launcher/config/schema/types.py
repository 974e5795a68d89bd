"""Types of options with a range. To Python they are int and float; `values.py` checks what a user gives."""

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The numbers that an option takes. Infinity and NaN are never among them.

    Attributes:
        low, high: the limits; None where there is none.
        open_low, open_high: whether the limit itself is outside.
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        above = self.low is None or value > self.low or (value == self.low and not self.open_low)
        below = self.high is None or value < self.high or (value == self.high and not self.open_high)
        return above and below

    def __str__(self) -> str:
        """As words: "from 1 to 10^9", "above 0 and below 1"."""
        if self.low is not None and self.high is not None and not self.open_low and not self.open_high:
            return f"from {_number(self.low)} to {_number(self.high)}"
        parts = []
        if self.low is not None:
            parts.append(f"{'above' if self.open_low else 'of at least'} {_number(self.low)}")
        if self.high is not None:
            parts.append(f"{'below' if self.open_high else 'at most'} {_number(self.high)}")
        return " and ".join(parts)


def _number(value: float) -> str:
    """10^9 for 1000000000, 2^32 - 1 for 4294967295, and so on: what a reader takes in at a glance."""
    if isinstance(value, int) and value >= 10**6:
        if str(value).strip("0") == "1":
            return f"10^{len(str(value)) - 1}"
        if value & (value + 1) == 0:
            return f"2^{value.bit_length()} - 1"
    return f"{value:g}" if isinstance(value, float) else str(value)


# Whole numbers. The upper limits are far above what any run needs, and far below what would take all memory.
NonNegativeInt = Annotated[int, Range(0, 10**15)]
"""A number of tokens, bytes or samples, with 0."""
PositiveInt = Annotated[int, Range(1, 10**15)]
"""A number of tokens or bytes, without 0."""
NonNegativeCount = Annotated[int, Range(0, 10**9)]
"""A number of steps, examples or files, with 0."""
PositiveCount = Annotated[int, Range(1, 10**9)]
"""A number of steps, examples or files, without 0."""
Size = Annotated[int, Range(1, 10**6)]
"""How much is computed or held at a time: sequences, tokens, texts, pixels."""
Ranks = Annotated[int, Range(1, 10**6)]
"""A number of processes."""
Threads = Annotated[int, Range(1, 1024)]
"""A number of threads of one process."""
Workers = Annotated[int, Range(0, 1024)]
"""A number of processes and threads, with 0 for one per core."""
Seconds = Annotated[int, Range(1, 10**7)]
"""A time limit; 10^7 seconds are 16 weeks."""
ColumnNumber = Annotated[int, Range(-1000, 1000)]
"""A column of a file, counted from 0, or from the end: -1 is the last."""
Seed = Annotated[int, Range(0, 2**28 - 1)]
"""A seed that, combined with any step and rank, fits into the 64 bits of a generator's seed."""

# Real numbers.
PositiveFloat = Annotated[float, Range(0, 10**15, open_low=True)]
"""The limit is one that numbers of 32 bits hold, and so do their products."""
NonNegativeFloat = Annotated[float, Range(0, 10**15)]
ClosedUnitInterval = Annotated[float, Range(0, 1)]
"""A share, or a weight between two things: 0 and 1 are allowed."""
OpenUnitInterval = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
"""A probability for which neither 0 nor 1 means anything."""
UnitIntervalBelowOne = Annotated[float, Range(0, 1, open_high=True)]
"""A share that leaves something: 0 turns it off, 1 is not allowed."""
PositiveShare = Annotated[float, Range(0, 1, open_low=True)]
"""A share of something: 1 is all of it, 0 is not allowed."""
