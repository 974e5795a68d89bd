"""The loggers and observers of every run. A new one is one file, and a line here."""

from pathlib import Path

from ingot.launcher.config.pretrain import Run
from ingot.launcher.training.callbacks.callback import Callback, Callbacks
from ingot.launcher.training.callbacks.compilation_notes import CompilationNotes
from ingot.launcher.training.callbacks.log_file import LogFile
from ingot.launcher.training.callbacks.memory_snapshots import MemorySnapshots
from ingot.launcher.training.callbacks.metrics_file import MetricsFile
from ingot.launcher.training.callbacks.profiler import FOLDER, Profiler
from ingot.launcher.training.callbacks.tensorboard import TensorBoard
from ingot.launcher.training.callbacks.terminal import Terminal
from ingot.parallel.engines.engine import Engine


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


def observers(run: Run, folder: Path, engine: Engine, callbacks: Callbacks) -> list[Callback]:
    """What watches the run on this rank, as the options say.

    Args:
        folder: the run's folder.
        callbacks: the loggers, which are told what was found.
    """
    found: list[Callback] = []
    rank = engine.mesh.rank
    if run.profile_steps is not None and run.profile_rank == rank:
        found.append(Profiler(folder / FOLDER, rank, *run.profile_steps, callbacks))
    if run.memory_snapshots and engine.mesh.device.type == "cuda":
        found.append(MemorySnapshots(folder / FOLDER, rank, run.memory_snapshot_steps, callbacks))
    elif run.memory_snapshots:
        callbacks.message("run.memory_snapshots has no effect: torch records the memory of GPUs only")
    if engine.compilation is not None:
        found.append(CompilationNotes(engine.compilation, callbacks))
    return found
