"""Storage of a corpus: a local folder, or a URL that `fsspec` reads. Files are only read, never executed."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np

from ingot.packages import how_to_install
from ingot.safe_files import open_regular, read_bytes

T = TypeVar("T")

# Schemes that run commands (pipe) or open one archive inside another are left out.
SCHEMES = ("abfs", "az", "file", "gcs", "gs", "hf", "http", "https", "memory", "s3")
DRIVERS = {"abfs": "adlfs", "az": "adlfs", "gcs": "gcsfs", "gs": "gcsfs", "hf": "huggingface_hub", "s3": "s3fs"}

ATTEMPTS = 3  # for one request
FIRST_WAIT = 0.2  # seconds before the second attempt; doubles with each
MAX_BLOCK_BYTES = 256 * 2**20  # of remote bundles in memory, if there is no disk cache
CHUNK_BYTES = 4 * 2**20  # that a download reads at once


class ShortRead(OSError):
    """A file ends before the bytes that were asked for."""


class FileChanged(OSError):
    """A file is not any more what it was when it was opened."""


def open_storage(location: str | Path) -> LocalFolder | RemoteFolder:
    """Raises ValueError for a URL whose scheme is not in SCHEMES, or whose driver is not installed."""
    if isinstance(location, Path):
        return LocalFolder(location)
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", location)
    if match is None:
        return LocalFolder(Path(location))
    scheme = match[1].lower()
    if scheme not in SCHEMES or "::" in location or not location[match.end() :].startswith("//"):
        raise ValueError(
            f"corpus {location!r} is not a supported URL ({scheme!r}): give a local folder (write ./{location} if it "
            f"is one) or a URL that begins with one of {', '.join(f'{s}://' for s in SCHEMES)}"
        )
    if scheme == "file":
        return LocalFolder(Path(unquote(urlsplit(location).path)))
    return RemoteFolder(location)


class LocalFolder:
    """The files of a folder on this machine."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def full_path(self, name: str) -> str:
        return str(self.path / name)

    def read(self, name: str, limit: int) -> bytes:
        """The content of a file. Raises OSError, and ValueError if it has more than `limit` bytes or is no regular
        file."""
        return read_bytes(self.path / name, max_bytes=limit)

    def names(self) -> set[str]:
        """The names of all files in the folder."""
        return set(os.listdir(self.path))

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it does not exist, or is a broken link."""
        try:
            return os.stat(f"{self.path}/{name}").st_size
        except FileNotFoundError:
            return None

    def open(self, name: str) -> WatchedFile:
        return WatchedFile(self.path / name)


class OpenFile:
    """An open file that is closed with its last reference: other threads may still read a file that one has dropped.

    Raises OSError, and ValueError if it is no regular file.
    """

    def __init__(self, path: str | Path):
        self.path = path
        with open_regular(Path(path)) as file:
            self.descriptor = os.dup(file.fileno())

    def try_read_into(self, buffer: np.ndarray, offset: int) -> bool:
        """Fill `buffer` from byte `offset` on, with one system call; False if that did not fill it. The fast path."""
        try:
            return os.preadv(self.descriptor, [buffer.data], offset) == buffer.nbytes
        except OSError:
            return False

    def read_into(self, buffer: np.ndarray, offset: int) -> None:
        """Fill `buffer` (contiguous) from byte `offset` on. Raises ShortRead if the file ends before."""
        rest, got = _bytes_of(buffer), 0
        while len(rest):
            part = os.preadv(self.descriptor, [rest], offset + got)
            if not part:
                raise ShortRead(f"the file ends before byte {offset + buffer.nbytes}, which its index names")
            rest, got = rest[part:], got + part

    @property
    def state(self) -> object:
        """What changes when the file does; None if nobody else writes to it."""
        return None

    def remember(self, offset: int, content: np.ndarray) -> None:
        """Nothing to do: the system's page cache keeps local files."""

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class WatchedFile(OpenFile):
    """A file that others may write to. What was read counts only if the file is still as it was when it was opened."""

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._state = self._state_now()

    def _state_now(self) -> tuple[int, ...]:
        found = os.fstat(self.descriptor)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    @property
    def state(self) -> object:
        return self._state

    def try_read_into(self, buffer: np.ndarray, offset: int) -> bool:
        return super().try_read_into(buffer, offset) and self._state_now() == self._state

    def read_into(self, buffer: np.ndarray, offset: int) -> None:
        """As the base class. Raises FileChanged if somebody has written to the file since it was opened."""
        super().read_into(buffer, offset)
        if self._state_now() != self._state:
            raise FileChanged("somebody writes to the file while it is read")


class RemoteFolder:
    """The files below a URL. A request that fails is tried again a few times."""

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        scheme = self.url.split(":", 1)[0]
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            driver = DRIVERS.get(scheme, "aiohttp")
            raise ValueError(
                f"corpus {url}: reading {scheme}:// needs the package {driver}: run {how_to_install(driver)}"
            ) from error
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int], memoryview] = OrderedDict()
        self._block_bytes = 0

    def __str__(self) -> str:
        return self.url

    def full_path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def read(self, name: str, limit: int) -> bytes:
        """The content of a file. Raises OSError, and ValueError if it has more than `limit` bytes."""

        def request() -> bytes:
            with self._files.open(self._path(name), "rb") as file:
                return file.read(limit + 1)

        return _within(self._try(request, name), limit, self.full_path(name))

    def size(self, name: str) -> int:
        return self._try(lambda: int(self._files.info(self._path(name))["size"]), name)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Raises ShortRead if the file ends before `offset` + `size`, and other OSErrors if it cannot be read."""
        content = self._try(lambda: self._files.cat_file(self._path(name), start=offset, end=offset + size), name)
        if len(content) > size:  # a web server without support for ranges sends the whole file
            content = content[offset : offset + size]
        if len(content) != size:
            raise ShortRead(f"the file ends before byte {offset + size}, which its index names")
        return content

    def download(self, name: str, size: int, write: Callable[[bytes], None]) -> None:
        """Pass the file to `write` in chunks, at most `size` + 1 bytes. One attempt only."""
        with self._files.open(self._path(name), "rb") as file:
            left = size + 1
            while left and (chunk := file.read(min(left, CHUNK_BYTES))):
                write(chunk)
                left -= len(chunk)

    def open(self, name: str) -> RemoteFile:
        return RemoteFile(self, name)

    def _try(self, request: Callable[[], T], name: str) -> T:
        problem: Exception | None = None
        for attempt in range(ATTEMPTS):
            try:
                return request()
            except FileNotFoundError:
                raise
            except Exception as error:  # each driver has its own classes of errors
                problem = error
            if attempt + 1 < ATTEMPTS:
                time.sleep(FIRST_WAIT * 2**attempt)
        raise OSError(f"{self.full_path(name)} cannot be read: {type(problem).__name__}: {problem}") from problem

    def remember(self, name: str, offset: int, content: np.ndarray) -> None:
        """Keep the bytes from `offset` on in memory; the least recently used ones are dropped."""
        with self._lock:
            block = _bytes_of(content)
            if (name, offset) not in self._blocks:
                self._blocks[name, offset] = block
                self._block_bytes += len(block)
            while self._block_bytes > MAX_BLOCK_BYTES and len(self._blocks) > 1:
                self._block_bytes -= len(self._blocks.popitem(last=False)[1])

    def recall(self, name: str, offset: int, size: int) -> memoryview | None:
        """Bytes that are still in memory, else None."""
        with self._lock:
            for key, block in self._blocks.items():
                if key[0] == name and key[1] <= offset and offset + size <= key[1] + len(block):
                    self._blocks.move_to_end(key)
                    return block[offset - key[1] : offset - key[1] + size]
        return None


class RemoteFile:
    """A remote file that is read in ranges. Bundles that were just verified stay in memory for a while."""

    state = None  # it is not watched

    def __init__(self, folder: RemoteFolder, name: str):
        self.folder, self.name = folder, name

    def try_read_into(self, buffer: np.ndarray, offset: int) -> bool:
        """Fill `buffer` from memory; False if the bytes are not in memory."""
        content = self.folder.recall(self.name, offset, buffer.nbytes)
        if content is not None:
            _bytes_of(buffer)[:] = content
        return content is not None

    def read_into(self, buffer: np.ndarray, offset: int) -> None:
        target = _bytes_of(buffer)
        content = self.folder.recall(self.name, offset, len(target))
        target[:] = content if content is not None else self.folder.read_range(self.name, offset, len(target))

    def remember(self, offset: int, content: np.ndarray) -> None:
        self.folder.remember(self.name, offset, content)


def _bytes_of(array: np.ndarray) -> memoryview:
    """The memory of a contiguous 1-D array."""
    return array.view(np.uint8).data


def _within(content: bytes, limit: int, name: str) -> bytes:
    if len(content) > limit:
        raise ValueError(f"{name} has more than {limit} bytes, the limit for such a file")
    return content
