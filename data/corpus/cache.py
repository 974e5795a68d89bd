"""Copies of remote shards on this machine's disk, shared by all its processes.

    CACHE/ab/ab01...             a whole shard, named by its sha256: equal ones are kept once, equal names never collide
    CACHE/ab/ab01....part-1234   being downloaded by a process that holds a lock on it; without that lock, left behind
    CACHE/locks/ab01...          who holds this lock downloads that shard; the others wait and find it there
    CACHE/locks/room             who holds this lock counts, evicts and reserves

A file has its final name once its length and sha256 were right and it was synced, so a process may be killed at any
point. All locks are the kernel's (flock), and end with the process that holds them. A file that is open for reading is
locked (shared) and never evicted; of the others the least recently opened go first.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from ingot.data.corpus.storage import ATTEMPTS, FIRST_WAIT, OpenFile
from ingot.durable_files import sync_folder

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAX_OPEN_FILES = 128  # cached files that this process keeps open, and so in the cache
DOWNLOADS = 2  # at once, ahead of their use
MAX_PREFETCHES = 8  # downloads that are waiting or under way, ahead of their use
RETRY_SECONDS = 60  # after which it is tried again whether there is room for a shard

Download = Callable[[Callable[[bytes], None]], None]  # gives the content, piece by piece, to a function


class Cache:
    """A folder of at most `max_bytes`, what is being downloaded included. Raises ValueError where it cannot be made."""

    def __init__(self, folder: str | Path, max_bytes: int):
        self.folder, self.max_bytes = Path(folder), max_bytes
        try:
            with self._locked("room"):
                pass
        except OSError as error:
            raise ValueError(f"cache folder {folder} cannot be used ({error}): choose another data.cache_dir") from None
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenFile] = OrderedDict()
        self._left_out: dict[str, float] = {}  # shards that are read where they are, and until when (monotonic seconds)
        self._ahead: set[str] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._warned = False

    def open(self, sha256: str, size: int, download: Download | None) -> OpenFile | None:
        """The copy of a shard of `size` bytes, downloaded first if it is not there. None when there is no room for it,
        or what is downloaded is, again and again, not that shard, or it is not there and `download` is None: then it
        has to be read where it is.

        Raises FileNotFoundError when `download` does, and OSError when it fails otherwise, at each of several attempts.
        """
        with self._lock:
            if (file := self._open.get(sha256)) is not None:
                self._open.move_to_end(sha256)
                return file
            if self._left_out.get(sha256, 0) > time.monotonic():
                return None
        file = self._open_copy(sha256, size)
        if file is None:
            if download is None:
                return None
            with self._locked(sha256):
                file = self._open_copy(sha256, size) or self._download(sha256, size, download)
        with self._lock:
            if file is None:
                self._left_out.setdefault(sha256, time.monotonic() + RETRY_SECONDS)
                return None
            file = self._open.setdefault(sha256, file)
            while len(self._open) > MAX_OPEN_FILES:
                self._open.popitem(last=False)
        return file

    def ahead(self, sha256: str, size: int, download: Download) -> bool:
        """Begin to download, in the background, what will be wanted soon. False when enough is under way already."""
        with self._lock:
            if sha256 in self._ahead or sha256 in self._open or sha256 in self._left_out:
                return True
            if len(self._ahead) >= MAX_PREFETCHES:
                return False
            self._ahead.add(sha256)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="download")
            pool = self._pool

        def fetch() -> None:
            try:
                with suppress(OSError):  # whoever needs it will meet the problem again, and report it
                    self.open(sha256, size, download)
            finally:
                with self._lock:
                    self._ahead.discard(sha256)

        pool.submit(fetch)
        return True

    def discard(self, sha256: str, bad: OpenFile) -> None:
        """Remove a copy that turned out to be damaged, unless another process has already replaced it."""
        with self._lock:
            if self._open.get(sha256) is bad:
                del self._open[sha256]
        with self._locked(sha256), suppress(FileNotFoundError):
            path = self._path(sha256)
            if os.path.samestat(os.stat(path), os.fstat(bad.descriptor)):
                path.unlink()

    def close(self) -> None:
        """Let go of all files, and of downloads that have not begun; a later `open` opens again."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._open.clear()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._ahead.clear()
            self._open.clear()

    def _path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        path = self.folder / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _open_copy(self, sha256: str, size: int) -> OpenFile | None:
        path = self._path(sha256)
        try:
            file = OpenFile(path)
        except FileNotFoundError:
            return None
        fcntl.flock(file.descriptor, fcntl.LOCK_SH)
        status = os.fstat(file.descriptor)
        if not status.st_nlink:  # evicted between opening and locking
            return None
        if status.st_size != size:
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # the time of last use, for eviction
            os.utime(path)
        return file

    def _download(self, sha256: str, size: int, download: Download) -> OpenFile | None:
        """The caller holds the shard's lock."""
        for attempt in range(ATTEMPTS):
            part = self._reserve(sha256, size)
            if part is None:
                return None
            path, descriptor = part
            problem: OSError | None = None
            try:
                if self._fill(descriptor, sha256, size, download):
                    os.fsync(descriptor)
                    os.rename(path, self._path(sha256))
                    sync_folder(path.parent)
                    fcntl.flock(descriptor, fcntl.LOCK_SH)  # the next line locks the same file once more
                    return self._open_copy(sha256, size)
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno in NO_ROOM:
                    return self._no_room(f"{os.strerror(error.errno)} while writing to it")
                problem = error
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                os.close(descriptor)
            if attempt + 1 < ATTEMPTS:
                time.sleep(FIRST_WAIT * 2**attempt)
        if problem is not None:
            raise problem
        self._left_out[sha256] = math.inf
        warnings.warn(f"shard {sha256[:16]} is damaged where it comes from; its bundles are read singly", stacklevel=2)
        return None

    def _fill(self, descriptor: int, sha256: str, size: int, download: Download) -> bool:
        """Whether what came was the shard."""
        digest, length = hashlib.sha256(), 0

        def write(piece: bytes) -> None:
            nonlocal length
            digest.update(piece)
            length += len(piece)
            rest = memoryview(piece)
            while len(rest):
                rest = rest[os.write(descriptor, rest) :]

        try:
            download(write)
        except OSError:
            raise
        except Exception as error:  # each driver has its own kinds
            raise OSError(f"{type(error).__name__}: {error}") from error
        return length == size and digest.hexdigest() == sha256

    def _reserve(self, sha256: str, size: int) -> tuple[Path, int] | None:
        """A locked file of `size` bytes to write into, others evicted for it as need be; None if there is no room."""
        if size > self.max_bytes:
            return self._no_room(f"a shard has {size:,} bytes and the cache may have {self.max_bytes:,}")
        path = self._path(sha256).with_name(f"{sha256}.part-{os.getpid()}-{threading.get_ident()}")
        with self._locked("room"):
            while self._evict(self.max_bytes - size):
                with self._lock:  # what this process holds open without need, the oldest first
                    if not self._open:
                        return self._no_room(f"the files in use leave no {size:,} bytes of {self.max_bytes:,}")
                    self._open.popitem(last=False)
            descriptor = None
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                with _unless_unsupported():
                    os.posix_fallocate(descriptor, 0, max(1, size))
                return path, descriptor
            except OSError as error:
                if descriptor is not None:
                    os.unlink(path)
                    os.close(descriptor)
                if error.errno in NO_ROOM:
                    return self._no_room(os.strerror(error.errno))
                raise

    def _evict(self, most: int) -> bool:
        """Remove leftovers, and then files not in use until `most` bytes are left; True when there are still more."""
        files = []
        for folder in os.scandir(self.folder):
            if len(folder.name) == 2 and folder.is_dir(follow_symlinks=False):
                for entry in os.scandir(folder.path):
                    with suppress(FileNotFoundError):
                        files.append((entry.stat(follow_symlinks=False), entry.path))
        files.sort(key=lambda item: (".part-" not in item[1], item[0].st_mtime_ns))
        total = sum(status.st_size for status, _ in files)
        for status, path in files:
            if ".part-" not in path and total <= most:
                break
            if _remove_unless_in_use(path):
                total -= status.st_size
        return total > most

    def _no_room(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"cache {self.folder} has no room: {reason}. Shards are read over the network, range by range; "
                f"raise data.cache_bytes or free some space",
                stacklevel=2,
            )


@contextmanager
def _unless_unsupported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise


def _remove_unless_in_use(path: str) -> bool:
    try:
        file = OpenFile(path)
        fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
