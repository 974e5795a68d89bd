"""A lock on a run's folder: two runs at the same time would write the same checkpoints and metrics."""

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

NAME = ".lock"


def lock(folder: Path) -> TextIO:
    """Locks the folder until the process ends in any way, or until the result is closed.

    Raises:
        ValueError: another process has the lock. The message names it.
    """
    file = (folder / NAME).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return file  # a file system without locks
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ValueError(f"{holder} is running in {folder}; wait for it, stop it, or choose another run.name") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
