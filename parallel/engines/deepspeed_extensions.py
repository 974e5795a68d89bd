"""Builds the C++ extensions that DeepSpeed compiles on first use. A build that was killed does not block later ones.

torch marks a build by a file `lock` in the folder of the extension. A process that is killed leaves it there, and all
later builds wait for it, without a message and without end. So Ingot holds a lock of the operating system during a
build. That lock ends with its process: who has it knows that `lock` belongs to no other process of Ingot.
"""

import fcntl
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
        with build_lock(extension_folder(builder.name)):
            builder.load(verbose=False)


@contextmanager
def build_lock(folder: Path, timeout: float = TIMEOUT_SECONDS) -> Iterator[None]:
    """Lets one process of Ingot at a time build in `folder`, and removes a `lock` that a killed process left there.

    Args:
        folder: where an extension is built.
        timeout: another program may be building. So `lock` is removed only after so many seconds.
    """
    lock = folder / "lock"
    with open(folder.parent / f"{folder.name}.guard", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        end = time.monotonic() + timeout
        while lock.exists():
            if time.monotonic() > end:
                print(f"removed {lock}, which a build that was killed has left", file=sys.stderr, flush=True)
                lock.unlink(missing_ok=True)
            time.sleep(0.1)
        yield
