"""The loggers of every run. A new logger is one file, and a line here."""

from pathlib import Path

from ingot.launcher.training.callbacks.callback import Callback
from ingot.launcher.training.callbacks.log_file import LogFile
from ingot.launcher.training.callbacks.metrics_file import MetricsFile
from ingot.launcher.training.callbacks.tensorboard import TensorBoard
from ingot.launcher.training.callbacks.terminal import Terminal


def loggers(folder: Path, *, steps: int, step: int) -> list[Callback]:
    """The loggers of rank 0; the other ranks have none.

    Args:
        folder: the run's folder.
        steps: optimizer steps of the run.
        step: optimizer steps done.
    """
    return [
        MetricsFile(folder, step),
        TensorBoard(folder, step),
        LogFile(folder, steps),
        Terminal(steps, step),
    ]
