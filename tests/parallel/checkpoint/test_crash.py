"""SIGKILL before and after each system call of saving: what is there afterwards is whole, and training goes on from it.

The points are not listed by hand: each call that changes the disk, in the order in which it happens, is one.
"""

import os
import signal
from pathlib import Path

import pytest

from ingot.parallel import checkpoint
from ingot.parallel import mesh as meshes
from ingot.parallel.checkpoint import files
from tests.parallel.toy import build, train
from tests.ranks import run_ranks

STEPS, KEEP = 5, 2
CALLS = ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink")


def in_a_child(work, *arguments) -> int:
    """Runs it in a forked process; returns its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(folder: Path, kill_at: int, first_deadly: int = 3) -> None:
    """Trains to the end from what is there, and writes the last loss to `folder/last`. Saves after each step.

    Args:
        kill_at: number of the point at which the process is killed, counted from the save of step `first_deadly` on; 0
            for none. The number of points goes to `folder/points`.
    """
    mesh = meshes.start("cpu")
    engine = build("torch", mesh)
    start, loss = 0, 0.0
    if checkpoint.committed(folder / "checkpoints"):
        path = checkpoint.resolve(folder)
        manifest = checkpoint.load(path, engine.shards())  # checks the digest of each tensor
        start, loss = manifest["step"], manifest["loss"]
        engine.sync_from_shards(start)
    saver = checkpoint.Saver(folder / "checkpoints", KEEP)
    count = _Points(kill_at)
    for step in range(start, STEPS):
        ((loss, _),) = train(engine, step, step + 1)
        count.on = step + 1 >= first_deadly
        saver.begin(engine.shards(), step=step + 1, metadata={"loss": float(loss)})
        saver.finish()
    (folder / "last").write_text(repr(float(loss)))
    (folder / "points").write_text(str(count.passed))


class _Points:
    """Counts the points and kills at one of them."""

    def __init__(self, kill_at: int):
        self.kill_at, self.passed, self.on = kill_at, 0, False
        for name in CALLS:
            setattr(os, name, self._around(getattr(os, name)))
        files._write_all = self._write_in_parts(files._write_all)

    def point(self) -> None:
        self.passed += self.on
        if self.on and self.passed == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _around(self, call):
        def counted(*arguments, **keywords):
            self.point()
            result = call(*arguments, **keywords)
            self.point()
            return result

        return counted

    def _write_in_parts(self, write):
        def counted(file, data):
            self.point()
            half = len(data) // 2
            write(file, data[:half])
            self.point()
            write(file, data[half:])

        return counted


def survive(folder: Path, point: int, expected: float) -> None:
    assert in_a_child(run, folder, point) == -signal.SIGKILL, f"point {point}"
    names = {path.name for path in checkpoint.committed(folder / "checkpoints")}
    assert names, f"point {point}: no checkpoint is left"
    for name in names:
        checkpoint.read_manifest(folder / "checkpoints" / name)  # whole, each of them
    finished = "step-00000005" in names
    assert in_a_child(run, folder, 0) == 0, f"point {point}: cannot go on"
    assert float((folder / "last").read_text()) == expected, f"point {point}"
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    if finished:  # the second run had nothing to save, and the next save cleans up
        assert {"step-00000004", "step-00000005"} <= set(left), f"point {point}"
    else:
        assert left == ["LATEST", "step-00000004", "step-00000005"], f"point {point}"


def sweep(folder: Path, every: int) -> tuple[int, int]:
    """Kills at each `every`-th point. In a process that has not computed yet, since one that has cannot be forked.

    Returns:
        The number of points, and of those that were tried.
    """
    (folder / "undisturbed").mkdir()
    assert in_a_child(run, folder / "undisturbed", 0) == 0
    expected, number = (float((folder / "undisturbed" / name).read_text()) for name in ("last", "points"))
    chosen = range(1, int(number) + 1, every)
    for point in chosen:
        (folder / str(point)).mkdir()
        survive(folder / str(point), point, expected)
    return int(number), len(chosen)


def test_a_kill_at_some_points_of_a_save_loses_nothing(tmp_path):
    ((number, tried),) = run_ranks(sweep, 1, tmp_path, 11)
    assert number > 100
    assert tried > 9


@pytest.mark.slow
def test_a_kill_at_any_point_of_a_save_loses_nothing(tmp_path):
    ((number, tried),) = run_ranks(sweep, 1, tmp_path, 1, timeout=1800.0)
    assert number == tried > 100
