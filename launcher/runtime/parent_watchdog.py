"""Ranks end with their launcher. A launcher that is killed by SIGKILL cannot tell them, and they would train on."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

POLL_SECONDS = 1.0
LAUNCHERS = {"torchrun", "torchrun.py", "torch.distributed.run", "deepspeed", "deepspeed.launcher.launch"}


def watch_launcher() -> None:
    """Sends this process SIGTERM when torchrun or deepspeed above it has died. Training then stops after its step.

    Does nothing if no launcher has started this process, or if there is no /proc.
    """
    chain = launchers_above(os.getpid())
    if chain:
        threading.Thread(target=_follow, args=(chain,), daemon=True).start()


def launchers_above(process: int) -> list[tuple[int, int]]:
    """(child, parent) for each launcher above `process`. `deepspeed` is two processes, one above the other."""
    chain = []
    while (parent := _parent_of(process)) is not None and _is_launcher(parent):
        chain.append((process, parent))
        process = parent
    return chain


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


def _parent_of(process: int) -> int | None:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])


def _is_launcher(process: int) -> bool:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return any(Path(word).name in LAUNCHERS for word in words[:4])  # python -u -m deepspeed.launcher.launch
