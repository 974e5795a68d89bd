"""Builds the C++ extensions that DeepSpeed compiles on first use, so that a killed process cannot block later ones.

torch marks a build by a file `lock` in the extension's folder, which a process that is killed leaves behind; all later
ones wait for it, for ever and without a word. Here a lock of the operating system, which ends with its holder, goes
round the build: whoever has it knows that `lock` belongs to no process of ours.
"""

import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_SECONDS = 120  # for builds by others than Ingot; DeepSpeed's CPU extensions take about 40 s


def build_communication() -> None:
    """Builds or loads DeepSpeed's shared-memory communication for CPU ranks, where this machine can compile it."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory

    if get_accelerator().device_name() != "cpu":
        return
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None and deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        with alone_in(Path(_get_build_directory(builder.name, verbose=False))):
            builder.load(verbose=False)


@contextmanager
def alone_in(folder: Path, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Holds `folder` against other processes of Ingot, without a `lock` that a killed process left in it.

    Args:
        folder: where an extension is built.
        patience: seconds to wait for a `lock`, in case that another program is building, before it is removed.
    """
    lock = folder / "lock"
    with open(folder.parent / f"{folder.name}.guard", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        end = time.monotonic() + patience
        while lock.exists():
            if time.monotonic() > end:
                print(f"removed {lock}, which a killed build has left behind", file=sys.stderr, flush=True)
                lock.unlink(missing_ok=True)
            time.sleep(0.1)
        yield
