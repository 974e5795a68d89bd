"""How long ranks wait for each other: short in steps, long where one may rightly make the others wait."""

from ingot.launcher.config.pretrain import Run
from ingot.launcher.training.callbacks.callback import Callback
from ingot.parallel.mesh import Mesh


class CollectiveTimeouts(Callback):
    """Sets the timeouts of all process groups, on each rank, between two steps.

    They are long until the first step has been done: building, loading and compiling may take an hour on one rank. Then
    they are short, so that a rank that hangs is noticed. But from a step that is followed by an evaluation or a save
    until the next step has been done they are long again: there rank 0 writes results, and a disk may be slow.
    """

    def __init__(self, mesh: Mesh, run: Run):
        """After the engine was built, whose groups have torch's own timeouts."""
        self._mesh, self._run, self._is_long = mesh, run, True
        mesh.set_timeouts("long")

    def on_step_end(self, step: int) -> None:
        run = self._run
        is_long = step >= run.num_steps or any(
            every and step % every == 0 for every in (run.eval_every, run.save_every)
        )
        if is_long != self._is_long:
            self._mesh.set_timeouts("long" if is_long else "short")
            self._is_long = is_long
