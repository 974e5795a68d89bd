"""Workers end with their launcher. One that is killed outright cannot tell them, and they would train on unattended."""

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
    """Once torchrun or deepspeed above this process has died, this process gets SIGTERM: training stops after its step.

    Does nothing where no launcher started this process, or where there is no /proc to see it.
    """
    chain = launchers_above(os.getpid())
    if chain:
        threading.Thread(target=_follow, args=(chain,), daemon=True).start()


def launchers_above(process: int) -> list[tuple[int, int]]:
    """(child, parent) for each launcher above `process`: `deepspeed` is two of them, one above the other."""
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
            with suppress(OSError):  # the launcher may have taken the output along
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
