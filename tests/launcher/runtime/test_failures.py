"""When a process dies, the other ranks end in seconds and say which rank was lost and why. None is left."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ingot.launcher.runtime.exit_codes import BAD_INPUT, REQUEUE
from ingot.launcher.runtime.parent_watchdog import launchers_above
from tests.launcher import toy_run
from tests.launcher.runs import BIN, ROOT, environment
from tests.ranks import free_port, process_context

TOY = str(ROOT / "tests/launcher/toy_run.py")
SECONDS = 8  # in which all must have ended: a grace of 5, and time for a busy machine


def run_toy(arguments: list[str], variables: dict[str, str], log: Path) -> None:
    os.environ.update(variables)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    sys.argv = [TOY, *arguments]
    toy_run.run_main(toy_run.main)


class Forked:
    """A rank of a toy run that needs no time for its imports, with what `Popen` offers."""

    def __init__(self, arguments: list[str], variables: dict[str, str], log: Path):
        self.process = process_context().Process(target=run_toy, args=(arguments, variables, log))
        self.process.start()
        self.kill = self.process.kill

    def poll(self) -> int | None:
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode


class Ranks:
    """The processes of a toy run, with one of several launchers or with none."""

    def __init__(self, folder: Path, launcher: str, num_ranks: int, *fault: str):
        self.folder, self.num_ranks = folder, num_ranks
        script, port = [TOY, str(folder), *fault], str(free_port())
        starts = []
        if launcher == "torchrun":
            starts = [[BIN / "torchrun", "--nproc_per_node", num_ranks, "--master_port", port, *script]]
        elif launcher == "torchrun.py":
            own = [sys.executable, ROOT / "launcher/torchrun.py"]
            starts = [[*own, "--nproc_per_node", num_ranks, "--master_port", port, *script]]
        elif launcher == "deepspeed":
            starts = [[BIN / "deepspeed", "--num_gpus", num_ranks, "--master_port", port, *script]]
        self.logs = [folder / f"log-{number}" for number in range(len(starts) or num_ranks)]
        self.launchers: list = []
        if launcher == "none":  # as on several machines, each with its own launcher
            world = {"WORLD_SIZE": str(num_ranks), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            for rank, log in enumerate(self.logs):
                self.launchers.append(Forked([str(folder), *fault], world | {"RANK": str(rank)}, log))
        for start, log in zip(starts, self.logs, strict=False):
            with log.open("w") as output:
                self.launchers.append(
                    subprocess.Popen(list(map(str, start)), env=environment(), stdout=output, stderr=subprocess.STDOUT)
                )
        self.processes: list[psutil.Process] = []

    def __enter__(self) -> "Ranks":
        self.wait_for(lambda: all((self.folder / f"step-{rank}").exists() for rank in range(self.num_ranks)), 60)
        pids = [int((self.folder / f"rank-{rank}").read_text()) for rank in range(self.num_ranks)]
        self.processes = [psutil.Process(pid) for pid in pids]
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.processes, *self.launchers]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def wait_for(self, condition, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.output()
            time.sleep(0.05)

    def end(self) -> list[int]:
        """Waits until nobody is left, and returns the exit codes of the launchers."""
        self.wait_for(lambda: not any(running(process) for process in self.processes), SECONDS)
        self.wait_for(lambda: all(launcher.poll() is not None for launcher in self.launchers), SECONDS)
        return [launcher.returncode for launcher in self.launchers]

    def output(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


def running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.distributed
def test_a_rank_that_is_killed_is_named_by_the_others(tmp_path):
    """Rank 0, to which all are connected; the next test kills another rank."""
    with Ranks(tmp_path, "none", 3) as ranks:
        ranks.processes[0].kill()
        assert ranks.end() == [-signal.SIGKILL, REQUEUE, REQUEUE], ranks.output()
    for rank in (1, 2):
        message = f"rank {rank} lost its connection to rank 0: that process has died .* from the last checkpoint"
        assert re.search(message, ranks.logs[rank].read_text())
        assert "Traceback" not in ranks.logs[rank].read_text()


@pytest.mark.distributed
def test_a_rank_that_hangs_is_ended_when_another_is_killed(tmp_path):
    """Rank 2 waits where no signal and no error of a collective reaches it."""
    with Ranks(tmp_path, "none", 3, "wait", "2") as ranks:
        ranks.wait_for(lambda: (tmp_path / "step-2").read_text() == "9", 20)
        ranks.processes[1].kill()
        assert ranks.end() == [REQUEUE, -signal.SIGKILL, REQUEUE], ranks.output()
    for rank in (0, 2):
        assert f"rank {rank} lost its connection to rank 1" in ranks.logs[rank].read_text()


@pytest.mark.distributed
def test_an_exception_is_reported_to_the_other_ranks(tmp_path):
    with Ranks(tmp_path, "none", 2, "raise", "1") as ranks:
        assert ranks.end() == [1, 1], ranks.output()
    reason = "rank 0 ends because rank 1 has failed (ValueError: the eleventh step is too much)"
    assert reason in ranks.logs[0].read_text()
    assert ranks.output().count("Traceback") == 1


@pytest.mark.distributed
def test_a_rank_that_is_killed_under_deepspeed(tmp_path):
    with Ranks(tmp_path, "deepspeed", 2) as ranks:
        ranks.processes[1].kill()
        assert set(ranks.end()) <= {REQUEUE, 256 - signal.SIGKILL}, ranks.output()  # of whom its launcher sees first
    assert "rank 0 lost its connection to rank 1" in ranks.output()


@pytest.mark.distributed
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_ranks_stop_together_when_their_launcher_is_killed(tmp_path, launcher):
    """`deepspeed` is two processes: the command, and below it the one that has started the ranks."""
    with Ranks(tmp_path, launcher, 2) as ranks:
        above = [parent for _, parent in launchers_above(ranks.processes[0].pid)]
        assert len(above) == {"torchrun": 1, "deepspeed": 2}[launcher]
        assert above[-1] == ranks.launchers[0].pid
        os.kill(above[-1], signal.SIGKILL)
        ranks.wait_for(lambda: not any(running(process) for process in ranks.processes), SECONDS)
    assert {path.name for path in tmp_path.glob("stopped-*")} == {"stopped-0", "stopped-1"}
    assert re.search(rf"its launcher, process {above[-1]}, has died; stopping", ranks.output())


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("fault", "code"),
    [("kill", REQUEUE), ("raise", 1), ("usr1", REQUEUE), pytest.param("term", REQUEUE, marks=pytest.mark.slow)],
)
def test_torchrun_with_an_exit_code(tmp_path, fault, code):
    """Of a rank that is killed, of an exception, and of requests to stop, which reach the ranks."""
    with Ranks(tmp_path, "torchrun.py", 2, *(["raise", "1"] if fault == "raise" else [])) as ranks:
        if fault == "kill":
            ranks.processes[1].kill()
        elif fault in ("usr1", "term"):
            ranks.launchers[0].send_signal(signal.SIGUSR1 if fault == "usr1" else signal.SIGTERM)
        assert ranks.end() == [code], ranks.output()
    stopped = {path.name for path in tmp_path.glob("stopped-*")}
    assert stopped == ({"stopped-0", "stopped-1"} if fault in ("usr1", "term") else set())


def spawning(launcher: str, victim: str, folder: Path) -> list[psutil.Process]:
    """Starts a toy run, and kills one process of its launcher when the first process below it is there, so that ranks
    begin as orphans.

    Args:
        victim: `top`, the launcher itself, or `launch`, the process that `deepspeed` starts and that starts the ranks.

    Returns:
        What that process had started by then.
    """
    common = ["--master_port", str(free_port()), TOY, str(folder)]
    start = ["--nproc_per_node", "2"] if launcher == "torchrun" else ["--num_gpus", "2"]
    with (folder / "log").open("w") as log:
        top = subprocess.Popen(
            [str(BIN / launcher), *start, *common], env=environment(), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        process = psutil.Process(top.pid)
        first = child_with(process, TOY if launcher == "torchrun" else "deepspeed.launcher.launch")
        if victim == "launch":
            process, first = first, child_with(first, TOY)
        process.kill()
        return [first]
    finally:
        if victim == "top":
            top.wait()


def child_with(process: psutil.Process, word: str) -> psutil.Process:
    """The first child with this word in its command; others are tools that a launcher asks about the machine."""
    end = time.monotonic() + 60
    while not (children := [child for child in process.children() if word in command_of(child)]):
        assert time.monotonic() < end
        time.sleep(0.01)
    return children[0]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("launcher", "victim"),
    [("deepspeed", "top"), ("deepspeed", "launch"), ("torchrun", "top")]
    + [pytest.param(*each, marks=pytest.mark.slow) for each in [("deepspeed", "top"), ("torchrun", "top")] * 10],
)
def test_a_launcher_that_is_killed_while_it_starts_ranks_leaves_none(tmp_path, launcher, victim):
    below = spawning(launcher, victim, tmp_path)
    names = [TOY, str(tmp_path)]
    left: list[psutil.Process] = below
    end = time.monotonic() + 60  # what has begun to import needs its time to see that it is alone
    while left and time.monotonic() < end:
        time.sleep(0.1)
        left = [p for p in psutil.process_iter() if running(p) and set(names) <= set(command_of(p))]
    for process in left:
        process.kill()
    log = (tmp_path / "log").read_text()
    assert not left, log
    assert not list(tmp_path.glob("step-*")), "the ranks went on to work"
    assert "has died" in log, log


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_there_is_no_launcher_above_a_process_that_none_has_started():
    assert launchers_above(os.getpid()) == []


@pytest.mark.distributed
def test_a_command_without_rank_0_ends_with_2_in_time(tmp_path):
    port = str(free_port())
    world = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    code = f"import sys; sys.argv = ['x', '{tmp_path}']; sys.path.insert(0, '{ROOT}')\n"
    code += "from ingot.launcher.runtime.exit_codes import bad_input, run_main\nfrom ingot.parallel import mesh\n"
    code += "def main(argv):\n with bad_input(): mesh.start('cpu', rendezvous_seconds=1)\n"
    result = subprocess.run(
        [sys.executable, "-c", code + "run_main(main)"], env=environment() | world, capture_output=True, text=True
    )
    assert result.returncode == BAD_INPUT
    assert re.fullmatch(rf"error: rank 1 on .* for 1 seconds .*127.0.0.1:{port}: .*\n", result.stderr), result.stderr
