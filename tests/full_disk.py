"""A full disk, without root and without filling one."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def full_disk(bytes_of_a_file: int = 10_000) -> Iterator[Callable[[], None]]:
    """A limit on the size of files acts as a full disk: the same call fails. Calling the result makes room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, limits[1]))

    def make_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    try:
        yield make_room
    finally:
        make_room()
        signal.signal(signal.SIGXFSZ, before)
