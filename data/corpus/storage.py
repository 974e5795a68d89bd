"""Where a corpus lies: a local folder, or a place that `fsspec` reads. Only named files are read, nothing is run."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Schemes that run commands (pipe) or open one archive inside another are left out.
SCHEMES = ("abfs", "az", "file", "gcs", "gs", "hf", "http", "https", "memory", "s3")
DRIVERS = {"abfs": "adlfs", "az": "adlfs", "gcs": "gcsfs", "gs": "gcsfs", "hf": "huggingface_hub", "s3": "s3fs"}

ATTEMPTS = 3  # at one request
FIRST_WAIT = 0.2  # seconds before the second attempt; doubles with each
MAX_BLOCK_BYTES = 256 * 2**20  # of remote bundles in memory, where there is no disk cache
PIECE_BYTES = 4 * 2**20  # of a download at a time


class ShortRead(OSError):
    """A file ends before the place that was asked for."""


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
            f"corpus {location!r}: {scheme!r} is no kind of place that corpora are read from; give a local folder "
            f"(write ./{location} if it is one) or a URL with one of {', '.join(f'{s}://' for s in SCHEMES)}"
        )
    if scheme == "file":
        return LocalFolder(Path(unquote(urlsplit(location).path)))
    return RemoteFolder(location)


class LocalFolder:
    """Files of a folder on this machine."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def locate(self, name: str) -> str:
        return str(self.path / name)

    def read(self, name: str, limit: int) -> bytes:
        """A whole file. Raises OSError, and ValueError when it has more than `limit` bytes."""
        with open(self.path / name, "rb") as file:
            size = min(os.fstat(file.fileno()).st_size, limit)
            return _within(file.read(size + 1), limit, self.locate(name))

    def names(self) -> set[str]:
        """Of all files in it."""
        return set(os.listdir(self.path))

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where a link leads nowhere."""
        try:
            return os.stat(f"{self.path}/{name}").st_size
        except FileNotFoundError:
            return None

    def open(self, name: str) -> OpenFile:
        return OpenFile(self.path / name)


class OpenFile:
    """An open file that closes with its last reference: one thread may still read what another has just let go."""

    def __init__(self, path: str | Path):
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def fill(self, buffer, offset: int) -> bool:
        """`read_into` without a second attempt: whether `buffer` is full. The fast way, for what should be there."""
        try:
            return os.preadv(self.descriptor, (buffer,), offset) == buffer.nbytes
        except OSError:
            return False

    def read_into(self, buffer, offset: int) -> None:
        """Fill `buffer` (any contiguous buffer) from byte `offset` on. Raises ShortRead when the file ends before."""
        got = os.preadv(self.descriptor, [buffer], offset)
        rest = memoryview(buffer).cast("B")[got:] if got != buffer.nbytes else b""
        while len(rest):
            part = os.preadv(self.descriptor, [rest], offset + got)
            if not part:
                raise ShortRead(f"the file ends before byte {offset + buffer.nbytes}, which its index names")
            got, rest = got + part, rest[part:]

    def keep(self, offset: int, content) -> None:
        """The system's page cache keeps local files."""

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class RemoteFolder:
    """Files below a URL. Each request is tried several times."""

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        scheme = self.url.split(":", 1)[0]
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            driver = DRIVERS.get(scheme, "aiohttp requests")
            raise ValueError(f"corpus {url}: reading {scheme}:// needs a driver: pip install {driver}") from error
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int], memoryview] = OrderedDict()
        self._block_bytes = 0

    def __str__(self) -> str:
        return self.url

    def locate(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def read(self, name: str, limit: int) -> bytes:
        """A whole file. Raises OSError, and ValueError when it has more than `limit` bytes."""

        def request() -> bytes:
            with self._files.open(self._path(name), "rb") as file:
                return file.read(limit + 1)

        return _within(self._try(request, name), limit, self.locate(name))

    def size(self, name: str) -> int:
        return self._try(lambda: int(self._files.info(self._path(name))["size"]), name)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Raises ShortRead when the file ends before `offset` + `size`, other OSErrors when it cannot be read."""
        content = self._try(lambda: self._files.cat_file(self._path(name), start=offset, end=offset + size), name)
        if len(content) > size:  # a web server that knows no ranges and sends everything
            content = content[offset : offset + size]
        if len(content) != size:
            raise ShortRead(f"the file ends before byte {offset + size}, which its index names")
        return content

    def download(self, name: str, size: int, write: Callable[[bytes], None]) -> None:
        """Give the file to `write`, piece by piece, one byte more than `size` at most. One attempt only."""
        with self._files.open(self._path(name), "rb") as file:
            left = size + 1
            while left and (piece := file.read(min(left, PIECE_BYTES))):
                write(piece)
                left -= len(piece)

    def open(self, name: str) -> RemoteFile:
        return RemoteFile(self, name)

    def _try(self, request: Callable, name: str):
        for attempt in range(ATTEMPTS):
            try:
                return request()
            except FileNotFoundError:
                raise
            except Exception as error:  # each driver has its own kinds
                problem = error
            if attempt + 1 < ATTEMPTS:
                time.sleep(FIRST_WAIT * 2**attempt)
        raise OSError(f"{self.locate(name)} cannot be read: {type(problem).__name__}: {problem}") from problem

    def keep(self, name: str, offset: int, content) -> None:
        with self._lock:
            block = memoryview(content).cast("B")
            if (name, offset) not in self._blocks:
                self._blocks[name, offset] = block
                self._block_bytes += len(block)
            while self._block_bytes > MAX_BLOCK_BYTES and len(self._blocks) > 1:
                self._block_bytes -= len(self._blocks.popitem(last=False)[1])

    def kept(self, name: str, offset: int, size: int) -> memoryview | None:
        with self._lock:
            for key, block in self._blocks.items():
                if key[0] == name and key[1] <= offset and offset + size <= key[1] + len(block):
                    self._blocks.move_to_end(key)
                    return block[offset - key[1] : offset - key[1] + size]
        return None


class RemoteFile:
    """A remote file that is read range by range. Bundles that were just checked stay in memory for a while."""

    def __init__(self, folder: RemoteFolder, name: str):
        self.folder, self.name = folder, name

    def fill(self, buffer, offset: int) -> bool:
        """As of an open file: whether `buffer` could be filled from what is in memory."""
        content = self.folder.kept(self.name, offset, buffer.nbytes)
        if content is not None:
            memoryview(buffer).cast("B")[:] = content
        return content is not None

    def read_into(self, buffer, offset: int) -> None:
        target = memoryview(buffer).cast("B")
        content = self.folder.kept(self.name, offset, len(target))
        target[:] = content if content is not None else self.folder.read_range(self.name, offset, len(target))

    def keep(self, offset: int, content) -> None:
        self.folder.keep(self.name, offset, content)


def _within(content: bytes, limit: int, name: str) -> bytes:
    if len(content) > limit:
        raise ValueError(f"{name} has more than {limit} bytes, which no file of its kind has")
    return content
