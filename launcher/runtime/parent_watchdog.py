"""Ranks end with their launcher. A launcher that is killed by SIGKILL cannot tell them, and they would train on."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

POLL_SECONDS = 1.0
LAUNCH = "deepspeed.launcher.launch"
LAUNCHERS = {"torchrun", "torchrun.py", "torch.distributed.run", "deepspeed", LAUNCH}
MARKS = ({"TORCHELASTIC_RUN_ID"}, {"CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE"})
"""Variables that torchrun, and the second of the two processes of `deepspeed`, give to the ranks."""


def watch_launcher() -> str | None:
    """Sends this process SIGTERM when torchrun or deepspeed above it has died. Training then stops after its step.

    Does nothing if no launcher has started this process, or if there is no /proc.

    Returns:
        What is wrong if a launcher had died before this process could see it; the process must then end.
    """
    process = os.getpid()
    if any(mark <= os.environ.keys() for mark in MARKS) and (lost := lost_launcher(process)):
        return lost
    chain = launchers_above(process)
    if chain:
        threading.Thread(target=_follow, args=(chain,), daemon=True).start()
    return None


def launchers_above(process: int) -> list[tuple[int, int]]:
    """(child, parent) for each launcher above `process`. `deepspeed` is two processes, one above the other."""
    chain = []
    while (parent := _parent_of(process)) is not None and _is_launcher(parent):
        chain.append((process, parent))
        process = parent
    return chain


def lost_launcher(process: int) -> str | None:
    """Which launcher of a rank has died; None if they are there, or other programs that may have started it."""
    chain = launchers_above(process)
    if not chain:
        return "the launcher" if _is_adopted(process) else None
    top = chain[-1][1]
    if _is_launcher(top, LAUNCH) and not _is_session_leader(top) and _is_adopted(top):  # a leader: started by sshd
        return "the deepspeed command"
    return None


def _is_adopted(process: int) -> bool:
    """Whether the parent is not the process that has started it, but init or a subreaper, to which the kernel gives
    orphans: that one is no Python program, as launchers are, and no shell in the session of the process."""
    parent = _parent_of(process)
    if parent is None or not _command(parent) or _is_python(parent):  # without a command: hidden, or of another system
        return False
    return parent == 1 or _session_of(parent) != _session_of(process)


def _follow(chain: list[tuple[int, int]]) -> None:
    while True:
        time.sleep(POLL_SECONDS)
        dead = [parent for child, parent in chain if _parent_of(child) != parent]
        if dead:
            with suppress(OSError):  # the output may have been a pipe to the launcher
                rank = os.environ.get("RANK", "?")
                print(f"rank {rank}: its launcher, process {dead[0]}, has died; stopping", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _stat(process: int) -> list[str] | None:
    """The fields of /proc/PROCESS/stat from the state on; None if there is no such process."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _parent_of(process: int) -> int | None:
    stat = _stat(process)
    return None if stat is None else int(stat[1])


def _session_of(process: int) -> int | None:
    stat = _stat(process)
    return None if stat is None else int(stat[3])


def _is_session_leader(process: int) -> bool:
    return _session_of(process) == process


def _is_python(process: int) -> bool:
    return bool(words := _command(process)) and Path(words[0]).name.startswith(("python", "pypy"))


def _is_launcher(process: int, *names: str) -> bool:
    """Whether it is one of the launchers, or of those with these names."""
    words = _command(process)[:4]  # python -u -m deepspeed.launcher.launch
    return any(Path(word).name in (names or LAUNCHERS) for word in words)


def _command(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
