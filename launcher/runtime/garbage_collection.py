"""Python's cyclic garbage collector, run at the same steps on all ranks.

By itself it runs at any time, on each rank at another one, and all other ranks wait for that rank each time.
"""

import gc
from types import TracebackType


class GarbageCollection:
    """In its context the collector runs every `every` steps, and otherwise not. 0 leaves it as it is.

    What is there at the start, such as the model and the modules, is not looked at again. At the end everything is as
    it was before.
    """

    def __init__(self, every: int):
        self.every = every
        self._was_enabled = True

    def __enter__(self) -> "GarbageCollection":
        self._was_enabled = gc.isenabled()
        if self.every:
            gc.collect()
            gc.freeze()
            gc.disable()
        return self

    def step_end(self, step: int) -> None:
        """Collects young garbage if it is time."""
        if self.every and step % self.every == 0:
            gc.collect(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.every:
            gc.unfreeze()
            if self._was_enabled:
                gc.enable()
