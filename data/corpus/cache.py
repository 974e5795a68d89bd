"""Copies of remote shards on the disk of this machine, shared by all its processes.

    CACHE/ab/ab01...             a whole shard, named by its sha256: equal shards are stored once
    CACHE/ab/ab01....part-1234   a download; the process that downloads has a lock on it. Without that lock: a leftover
    CACHE/locks/ab01...          the holder of this lock downloads that shard; the others wait, then use its copy
    CACHE/locks/room             the holder of this lock counts bytes, evicts files and reserves space

A file gets its final name after its length and sha256 were right and it was synced: a process may be killed at any
moment. All locks are locks of the kernel (flock), which end with the process that holds them. A file that is open for
reading has a shared lock and is never evicted. Of the other files the least recently opened are evicted first.
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

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAX_OPEN_FILES = 128  # cached files that this process keeps open, so that they are not evicted
DOWNLOADS = 2  # threads that prefetch
MAX_PREFETCHES = 8  # prefetches that are waiting or running
RETRY_SECONDS = 60  # until a shard that did not fit into the cache is tried again

Download = Callable[[Callable[[bytes], None]], None]  # passes the content, in chunks, to a function


class Cache:
    """A folder of at most `max_bytes`, downloads included. Raises ValueError if the folder cannot be made."""

    def __init__(self, folder: str | Path, max_bytes: int):
        self.folder, self.max_bytes = Path(folder), max_bytes
        try:
            with self._locked("room"):
                pass
        except OSError as error:
            raise ValueError(f"cache folder {folder} cannot be used ({error}): choose another data.cache_dir") from None
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenFile] = OrderedDict()
        self._uncached_until: dict[str, float] = {}  # shards that are not cached, and until when (monotonic seconds)
        self._prefetching: set[str] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._warned = False

    def open(self, sha256: str, size: int, download: Download | None) -> OpenFile | None:
        """The copy of a shard of `size` bytes. It is downloaded if it is not in the cache.

        Returns:
            None if there is no space for the shard, if each download gave other bytes than the shard's, or if it is not
            in the cache and `download` is None. Then the shard must be read from where it is stored.

        Raises:
            FileNotFoundError: `download` raised it.
            OSError: several downloads failed.
        """
        with self._lock:
            if (file := self._open.get(sha256)) is not None:
                self._open.move_to_end(sha256)
                return file
            if self._uncached_until.get(sha256, 0) > time.monotonic():
                return None
        file = self._open_copy(sha256, size)
        if file is None:
            if download is None:
                return None
            with self._locked(sha256):
                file = self._open_copy(sha256, size) or self._download(sha256, size, download)
        with self._lock:
            if file is None:
                self._uncached_until.setdefault(sha256, time.monotonic() + RETRY_SECONDS)
                return None
            file = self._open.setdefault(sha256, file)
            while len(self._open) > MAX_OPEN_FILES:
                self._open.popitem(last=False)
        return file

    def prefetch(self, sha256: str, size: int, download: Download) -> bool:
        """Start to download a shard in the background. False if enough downloads are running already."""
        with self._lock:
            if sha256 in self._prefetching or sha256 in self._open or sha256 in self._uncached_until:
                return True
            if len(self._prefetching) >= MAX_PREFETCHES:
                return False
            self._prefetching.add(sha256)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="download")
            pool = self._pool

        def fetch() -> None:
            try:
                with suppress(OSError):  # the reader of the shard meets the error again, and reports it
                    self.open(sha256, size, download)
            finally:
                with self._lock:
                    self._prefetching.discard(sha256)

        pool.submit(fetch)
        return True

    def discard(self, sha256: str, bad: OpenFile) -> None:
        """Remove a damaged copy, unless another process has replaced it already."""
        with self._lock:
            if self._open.get(sha256) is bad:
                del self._open[sha256]
        with self._locked(sha256), suppress(FileNotFoundError):
            path = self._path(sha256)
            if os.path.samestat(os.stat(path), os.fstat(bad.descriptor)):
                path.unlink()

    def close(self) -> None:
        """Close all files and cancel downloads that have not begun. A later `open` opens files again."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._open.clear()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._prefetching.clear()
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
        if not status.st_nlink:  # it was evicted between opening and locking
            return None
        if status.st_size != size:
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # the time of last use, for eviction
            os.utime(path)
        return file

    def _download(self, sha256: str, size: int, download: Download) -> OpenFile | None:
        """Download a shard into the cache. The caller holds the shard's lock."""
        problem: OSError | None = None
        for attempt in range(ATTEMPTS):
            part = self._reserve(sha256, size)
            if part is None:
                return None
            path, descriptor = part
            problem = None
            try:
                if self._fill(descriptor, sha256, size, download):
                    os.fsync(descriptor)
                    os.rename(path, self._path(sha256))
                    sync_folder(path.parent)
                    fcntl.flock(descriptor, fcntl.LOCK_SH)  # the next line locks the same file again
                    return self._open_copy(sha256, size)
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno in DISK_FULL:
                    self._warn_full(f"{os.strerror(error.errno)} while writing to it")
                    return None
                problem = error
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                os.close(descriptor)
            if attempt + 1 < ATTEMPTS:
                time.sleep(FIRST_WAIT * 2**attempt)
        if problem is not None:
            raise problem
        self._uncached_until[sha256] = math.inf
        warnings.warn(
            f"shard {sha256[:16]} is damaged at its source, so it is not cached; its bundles are read over the network",
            stacklevel=2,
        )
        return None

    def _fill(self, descriptor: int, sha256: str, size: int, download: Download) -> bool:
        """Download into the file; False if the bytes are not those of the shard."""
        digest, length = hashlib.sha256(), 0

        def write(chunk: bytes) -> None:
            nonlocal length
            digest.update(chunk)
            length += len(chunk)
            rest = memoryview(chunk)
            while len(rest):
                rest = rest[os.write(descriptor, rest) :]

        try:
            download(write)
        except OSError:
            raise
        except Exception as error:  # each driver has its own classes of errors
            raise OSError(f"{type(error).__name__}: {error}") from error
        return length == size and digest.hexdigest() == sha256

    def _reserve(self, sha256: str, size: int) -> tuple[Path, int] | None:
        """A locked file of `size` bytes to write into. Other files are evicted for it. None if there is no space."""
        if size > self.max_bytes:
            self._warn_full(f"a shard has {size:,} bytes and the cache may have {self.max_bytes:,}")
            return None
        path = self._path(sha256).with_name(f"{sha256}.part-{os.getpid()}-{threading.get_ident()}")
        with self._locked("room"):
            while self._evict(self.max_bytes - size):
                with self._lock:  # close files that this process keeps open, the oldest first
                    if not self._open:
                        self._warn_full(f"the files in use leave less than {size:,} of {self.max_bytes:,} bytes")
                        return None
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
                if error.errno in DISK_FULL:
                    self._warn_full(os.strerror(error.errno))
                    return None
                raise

    def _evict(self, most: int) -> bool:
        """Remove leftovers, then unused files until at most `most` bytes are left. True if more bytes are left."""
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

    def _warn_full(self, reason: str) -> None:
        """Warn once that shards are not cached."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"cache {self.folder} is full: {reason}. Shards are read over the network, in ranges; "
                f"increase data.cache_bytes or free some disk space",
                stacklevel=2,
            )


@contextmanager
def _unless_unsupported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
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
