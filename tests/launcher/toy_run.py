"""What the tests of failures start instead of a training run, which would take its time: ranks that add up numbers.

As in training, the ranks meet in `meshes.start`, have a watchdog, and stop together when one of them is asked to.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from ingot.launcher.runtime.exit_codes import DONE, REQUEUE, bad_input, run_main
from ingot.launcher.runtime.peer_watchdog import PeerWatchdog

STEP_SECONDS = 0.05


def main(argv: list[str]) -> int:
    """FOLDER, and what goes wrong: `raise R` or `wait R` at step 10, on rank R; otherwise a test kills a process."""
    folder, *fault = [argument for argument in argv if not argument.startswith("--local_rank")]
    from ingot.parallel import mesh as meshes

    stop_requested = []
    with PeerWatchdog() as watchdog:
        with bad_input():
            mesh = meshes.start("cpu", timeout_seconds=600, rendezvous_seconds=30)
            watchdog.connect(mesh.rank, mesh.world_size)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda *_: stop_requested.append(True))
        Path(folder, f"rank-{mesh.rank}").write_text(str(os.getpid()))
        for step in range(2000):
            if step == 10 and fault == ["raise", str(mesh.rank)]:
                raise ValueError("the eleventh step is too much")
            if step == 10 and fault == ["wait", str(mesh.rank)]:
                ctypes.CDLL(None).sleep(1000)  # as in a collective over NCCL: nothing wakes it
            (stop,) = meshes.sum_over_ranks([len(stop_requested)])
            if stop:
                Path(folder, f"stopped-{mesh.rank}").touch()
                return REQUEUE
            Path(folder, f"step-{mesh.rank}").write_text(str(step))
            time.sleep(STEP_SECONDS)
    return DONE


if __name__ == "__main__":
    run_main(main)
