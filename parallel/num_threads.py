"""How many threads a process on a CPU computes with."""

import os
from pathlib import Path

OPTION = "OMP_NUM_THREADS"
MARK = "TORCHELASTIC_RUN_ID"  # torchrun gives it to its processes and has none itself


def num_threads(num_local_ranks: int) -> int | None:
    """The threads of this process: its share of the cores; None where the user has chosen with OMP_NUM_THREADS.

    torchrun sets the variable to 1 where the user has not set it, which would leave cores idle.
    """
    value = os.environ.get(OPTION)
    if value is not None and not (value == "1" and _set_by_torchrun()):
        return None
    return max(1, len(os.sched_getaffinity(0)) // num_local_ranks)


def _set_by_torchrun() -> bool:
    """Whether torchrun was started without the variable. Between it and this process there may be others."""
    if MARK not in os.environ:
        return False
    process: int | str = "self"
    while (start := _environment_at_start(process)) is not None and MARK in start:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return start is None or OPTION not in start  # None: there is no /proc, or it belongs to another user


def _environment_at_start(process: int | str) -> set[str] | None:
    """The names of the variables with which a process was started; it may have set others since."""
    try:
        content = Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return None
    return {variable.partition(b"=")[0].decode(errors="replace") for variable in content.split(b"\0")}
