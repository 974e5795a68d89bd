"""A lock on a run's folder: two runs at the same time would write the same checkpoints and metrics."""

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import TextIO

NAME = ".lock"


def lock(folder: Path) -> TextIO:
    """Locks the folder until the process ends in any way, or until the result is closed.

    Raises:
        ValueError: another process has the lock (the message names it), or the lock is no regular file.
        OSError: the folder cannot be written.
    """
    try:
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise ValueError(f"{folder / NAME} is no regular file; remove it") from None
    file = os.fdopen(descriptor, "a+")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise ValueError(f"{folder / NAME} is no regular file; remove it")
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
