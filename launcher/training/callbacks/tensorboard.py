"""TensorBoard: curves of the metrics, and figures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.launcher.training.callbacks.callback import Callback, Kind

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NAMES = {
    "loss": "loss",
    "grad_norm": "optimizer/grad_norm",
    "learning_rate": "optimizer/learning_rate",
    "tokens_per_second": "speed/tokens_per_second",
    "step_seconds": "speed/step_seconds",
    "data_seconds": "speed/data_seconds",
    "substituted": "data/substituted",
    "tflops_per_device": "speed/tflops_per_device",
    "mfu": "speed/mfu",
    "perplexity": "perplexity",
    "bits_per_byte": "bits_per_byte",
    "accuracy": "accuracy",
}
"""The metrics with a curve, and the names of the curves. Each score of an evaluation has a curve too."""


class TensorBoard(Callback):
    """Writes to `folder`/tensorboard. It removes points after `step`, since a resumed run repeats these steps.

    A writer that has failed once does not write any more (its thread has ended), so it is replaced by a new one.
    """

    def __init__(self, folder: Path, step: int):
        self._folder, self._step = folder / "tensorboard", step
        self._writer: SummaryWriter | None = self._open()

    def _open(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=self._step + 1)

    def on_log(self, kind: Kind, record: dict[str, Any]) -> None:
        with self._writing() as writer:
            for name, value in record.items():
                if value is not None and (name in NAMES or (kind == "eval" and isinstance(value, float))):
                    writer.add_scalar(f"{kind}/{NAMES.get(name, name)}", value, record["step"])
            writer.flush()
        self._step = max(self._step, record["step"])

    def on_figure(self, name: str, figure: Any, step: int) -> None:
        with self._writing() as writer:
            writer.add_figure(name, figure, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    @contextmanager
    def _writing(self) -> Iterator[SummaryWriter]:
        with _without_traceback_of_thread():
            try:
                if self._writer is None:
                    self._writer = self._open()
                yield self._writer
            except OSError:
                self._writer = None
                raise


@contextmanager
def _without_traceback_of_thread() -> Iterator[None]:
    """The writer's thread prints a traceback when it cannot write. The same error reaches the caller."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError) or "AsyncWriter" not in type(args.thread).__name__:
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
