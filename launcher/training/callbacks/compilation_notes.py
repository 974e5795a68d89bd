"""Says what torch.compile has done: how many graphs it made, how long that took, and which blocks run without it."""

from ingot.launcher.training.callbacks.callback import Callback, Callbacks
from ingot.parallel.engines.compilation import Compilation


class CompilationNotes(Callback):
    """Logs an event after each step or evaluation in which blocks were compiled or could not be."""

    def __init__(self, compilation: Compilation, callbacks: Callbacks):
        self._compilation, self._callbacks, self._graphs = compilation, callbacks, 0

    def on_step_end(self, step: int) -> None:
        self._report(step)

    def on_evaluate(self, step: int, scores: dict[str, float]) -> bool:
        self._report(step)
        return False

    def _report(self, step: int) -> None:
        found = self._compilation
        while found.notes:
            self._callbacks.event(step, found.notes.pop(0))
        if found.graphs > self._graphs:
            self._graphs = found.graphs
            self._callbacks.event(step, "compiled", graphs=found.graphs, seconds=round(found.seconds, 1))
