"""torchrun, whose exit code says how the run ended, for scripts that decide on it whether to start again.

python launcher/torchrun.py --nnodes 2 --nproc_per_node 8 ... launcher/pretrain.py --config configs/gpt2-124m.yaml

torchrun itself exits with 1 whatever its processes say. This exits with the code of the first that failed, and with 75
if a signal ended it. SIGUSR1, with which clusters announce that time runs out, goes on to the processes.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.runtime.exit_codes import DONE, REQUEUE, exit_process
from ingot.parallel.open_files import raise_file_limit


def main(argv: list[str]) -> int:
    """Takes torchrun's own options."""
    if argv[:1] in ([], ["--help"], ["-h"]):
        print(f"usage: torchrun.py [options of torchrun] SCRIPT [its options]\n\n{__doc__}\nOptions: torchrun --help")
        raise SystemExit(0)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    signal.signal(signal.SIGUSR1, _pass_on)
    raise_file_limit(0, "torchrun")  # it holds the rendezvous, with a connection from each rank
    try:
        torchrun(argv)
    except ChildFailedError as failures:
        print(failures, file=sys.stderr)
        _, first = failures.get_first_failure()
        return first.exitcode if first.exitcode > 0 else REQUEUE  # below 0: the number of a signal
    except SignalException:
        return REQUEUE  # the processes got the signal too, and have stopped with a checkpoint if there was time
    return DONE


def _pass_on(number: int, frame: object) -> None:
    """To the children that have a handler; the others, still starting, would die of it."""
    process = os.getpid()
    for child in map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()):
        with suppress(OSError):
            if _handles(child, number):
                os.kill(child, number)


def _handles(process: int, number: int) -> bool:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught >> (number - 1) & 1)


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
