"""Builds the C++ extensions that DeepSpeed compiles on first use. A build that was killed does not block later ones.

torch marks a build by a file `lock` in the folder of the extension. A process that is killed leaves it there, and all
later builds wait for it, without a message and without end. So Ingot holds a lock of the operating system during a
build. That lock ends with its process: who has it knows that `lock` belongs to no other process of Ingot.
"""

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingot.parallel.engines.deepspeed_compat import cpu_communication_builder
from ingot.parallel.torch_compat import extension_folder

TIMEOUT_SECONDS = 120  # for builds of other programs; DeepSpeed's CPU extensions take about 40 s


def build_communication() -> None:
    """Builds or loads DeepSpeed's shared-memory communication for ranks on CPUs, if this machine can compile it."""
    builder = cpu_communication_builder()
    if builder is not None:
        with build_lock(extension_folder(builder.name)), own_ninja():
            builder.load(verbose=False)


@contextmanager
def own_ninja() -> Iterator[None]:
    """Lets torch find the `ninja` of this Python environment first, whatever the PATH says.

    Versions of ninja hash commands differently. With another version each time, each start would build again.
    """
    path = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
    try:
        yield
    finally:
        os.environ["PATH"] = path


@contextmanager
def build_lock(folder: Path, timeout: float = TIMEOUT_SECONDS) -> Iterator[None]:
    """Lets one process of Ingot at a time build in `folder`, and removes a `lock` that a killed process left there.

    The guard file names the process that builds, and is empty otherwise. Whoever gets the guard and finds a name in it
    knows that this process was killed in the middle, and that `lock` was its own.

    Args:
        folder: where an extension is built.
        timeout: seconds after which a `lock` of another program, which may be building, is removed.
    """
    lock = folder / "lock"
    with open(folder.parent / f"{folder.name}.guard", "a+") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        guard.seek(0)
        end = time.monotonic() + (0 if guard.read() else timeout)
        while lock.exists():
            if time.monotonic() >= end:
                print(f"removed {lock}, which a build that was killed has left", file=sys.stderr, flush=True)
                lock.unlink(missing_ok=True)
                break
            time.sleep(0.1)
        guard.truncate(0)
        guard.write(f"process {os.getpid()}")
        guard.flush()
        try:
            yield
        finally:
            guard.truncate(0)
